import { type Static, Type } from '@sinclair/typebox'
import { actorTypes, type Event as Row } from '#database/schema.ts'
import { type EventType, eventTypeFilters, eventTypes } from '#history/event-types.ts'
import { PageQuery } from '#http/paging.ts'
import { shownMessage } from '#instances/failure-message.ts'
import { type InstanceStatus, instanceStatuses } from '#instances/status.ts'
import { toMicroseconds } from '#platform/timestamps.ts'
import { DateTime, Nullable, OneOf, plainText, Uuid } from '#platform/typebox.ts'

const defaultLimit = 50

/** The type of the messages about steps, which only streams have. */
export const stepType = 'instance.step'

/** The number of digits that a JavaScript number holds exactly. */
const maxId = 999_999_999_999_999

export const EventPage = Type.Object(
  {
    ...PageQuery.properties,
    limit: { ...PageQuery.properties.limit, default: defaultLimit, description: 'The maximum number of items.' },
    after: Type.Optional(
      Type.Integer({
        minimum: 0,
        maximum: maxId,
        description:
          'Only events after the one with this id; 0 for all. Then the oldest comes first, unless `order` says ' +
          'otherwise.',
      }),
    ),
    order: Type.Optional(
      OneOf(
        ['asc', 'desc'],
        '`asc`: oldest first, for a reader that follows the history. An event is listed once no event before it can ' +
          'appear any more, mostly at once. `desc`: newest first, which is the default without `after`.',
      ),
    ),
    type: Type.Optional(
      Type.Array(OneOf(eventTypeFilters), {
        minItems: 1,
        maxItems: 20,
        uniqueItems: true,
        description: 'Only events of these types. Repeat the parameter for several. `instance.*` means all of a noun.',
      }),
    ),
    request_id: Type.Optional(
      Type.String({
        minLength: 1,
        maxLength: 128,
        ...plainText,
        description: 'Only events that the call with this `x-request-id` caused.',
      }),
    ),
  },
  { additionalProperties: false },
)

export const OrganizationEventPage = Type.Object(
  {
    ...EventPage.properties,
    instance_id: Type.Optional(
      Type.String({
        format: 'uuid',
        maxLength: 64,
        description: 'Only events of this instance, also after it was deleted.',
      }),
    ),
  },
  { additionalProperties: false },
)

/** The query of a stream. */
export const FollowedEvents = Type.Object(
  {
    after: Type.Optional({
      ...EventPage.properties.after,
      description: 'Begins after the event with this id; 0 for the whole history. `Last-Event-ID` comes before it.',
    }),
    type: Type.Optional(
      Type.Array(OneOf([...eventTypeFilters, stepType]), {
        minItems: 1,
        maxItems: 20,
        uniqueItems: true,
        description: 'Only events of these types. Repeat the parameter for several. `instance.*` means all of a noun.',
      }),
    ),
  },
  { additionalProperties: false },
)

export const LastEvent = Type.Object({
  'last-event-id': Type.Optional(
    Type.Integer({ minimum: 0, maximum: maxId, description: 'The id of the last event that you have.' }),
  ),
})

/** The body of a stream. */
export const EventStream = {
  description: 'The events as they come.',
  content: {
    'text/event-stream': {
      schema: Type.String({ examples: ['id: 4711\ndata: {"id":4711,"type":"instance.running"}\n\n'] }),
    },
  },
}

const Status = (description: string) => Nullable(OneOf(instanceStatuses, description))

export const Event = Type.Object(
  {
    id: Type.Integer({
      description: 'Increases in the order of the changes of one instance. Send the last one that you have as `after`.',
    }),
    type: OneOf(
      eventTypes,
      'A request (`instance.create`, `instance.stop`, `key.revoke`, `channel.connect`, `file.write`, …) or a result: ' +
        '`instance.running`, `instance.stopped`, `instance.failed`, `instance.destroyed`, `instance.gateway_ended`, ' +
        '`instance.attempt_failed`, `instance.due`, `instance.reconciled`. New types may be added: ignore those that ' +
        'you do not know.',
    ),
    instance_id: Nullable(Uuid('The instance that the event is about; null for an event of the organization.')),
    subject: Nullable(
      Type.String({ description: 'The key, channel, skill, session or path that the event is about.' }),
    ),
    actor: Type.Object(
      {
        type: OneOf(actorTypes, 'Who acted.'),
        id: Nullable(Uuid('The id of the API key; null for others.')),
      },
      { description: 'The cause: an API key, the operator, Stripe, or a worker of Chowder.' },
    ),
    request_id: Nullable(Type.String({ description: 'The `x-request-id` of the call that caused it.' })),
    from_status: Status('The status of the instance before; null for its creation, and for other nouns.'),
    to_status: Status('The status of the instance after; null for other nouns.'),
    generation: Nullable(Type.Integer({ description: 'The number of the intent of the instance after the event.' })),
    reason: Nullable(
      Type.String({
        description:
          'Why, in words for people; for a result of a worker: its steps, and how long each took. Null where the ' +
          'type says it all. What a gateway said is in it for keys with the permission `configure` only.',
      }),
    ),
    created_at: DateTime('The beginning of the change, in UTC.'),
  },
  {
    $id: 'HistoryEvent',
    examples: [
      {
        id: 4711,
        type: 'instance.stop',
        instance_id: '01939b6e-5b3c-7d2a-8f10-3c2f5a7b9d01',
        subject: null,
        actor: { type: 'key', id: '01939b6e-1c2d-7a3b-9c4d-5e6f7a8b9c0d' },
        request_id: '01939b70-0000-7000-8000-000000000001',
        from_status: 'running',
        to_status: 'stopped',
        generation: 2,
        reason: null,
        created_at: '2026-02-14T16:00:09.379000+00:00',
      },
    ],
  },
)

/** `mayConfigure`: whether the caller may read the gateway's output. */
export const toEvent = (row: Row, mayConfigure: boolean): Static<typeof Event> => ({
  id: row.id,
  type: row.type as EventType,
  instance_id: row.instanceId,
  subject: row.subject,
  actor: { type: row.actorType, id: row.actorId },
  request_id: row.requestId,
  from_status: row.fromStatus as InstanceStatus | null,
  to_status: row.toStatus as InstanceStatus | null,
  generation: row.generation,
  reason: shownMessage(row.reason, mayConfigure),
  created_at: toMicroseconds(row.createdAt),
})
