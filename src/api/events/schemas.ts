import { type Static, Type } from '@sinclair/typebox'
import { actorTypes, type Event as Row } from '#database/schema.ts'
import { PageQuery } from '#http/paging.ts'
import { Nullable, OneOf } from '#http/validation.ts'
import { type InstanceStatus, instanceStatuses } from '#instances/status.ts'
import { toMicroseconds } from '#platform/timestamps.ts'

export const defaultLimit = 50

export const EventPage = Type.Object(
  {
    ...PageQuery.properties,
    limit: { ...PageQuery.properties.limit, default: defaultLimit, description: 'The maximum number of items.' },
  },
  { additionalProperties: false },
)

const Status = Type.Unsafe<InstanceStatus | null>({ type: ['string', 'null'], enum: [...instanceStatuses, null] })

export const Event = Type.Object(
  {
    id: Type.Integer({ description: 'Increases in the order of the changes of one instance.' }),
    type: Type.String({
      description:
        'A request (`instance.create`, `instance.stop`, `key.revoke`, `channel.connect`, `file.write`, …) or a ' +
        'result: `instance.running`, `instance.stopped`, `instance.failed`, `instance.destroyed`, `instance.gateway_ended`, ' +
        '`instance.attempt_failed`, `instance.due`, `instance.reconciled`.',
    }),
    instance_id: Nullable(Type.String({ description: 'Null for an event of the organization.' })),
    subject: Nullable(
      Type.String({ description: 'The key, channel, skill, session or path that the event is about.' }),
    ),
    actor: Type.Object(
      {
        type: OneOf([...actorTypes]),
        id: Nullable(Type.String({ description: 'The id of the API key.' })),
      },
      { description: 'The cause: an API key, the operator, Stripe, or a worker of Chowder.' },
    ),
    request_id: Nullable(Type.String({ description: 'The `x-request-id` of the call that caused it.' })),
    from_status: Status,
    to_status: Status,
    generation: Nullable(Type.Integer({ description: 'The number of the intent of the instance after the event.' })),
    reason: Nullable(Type.String()),
    created_at: Type.String(),
  },
  {
    $id: 'Event',
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

export const toEvent = (row: Row): Static<typeof Event> => ({
  id: row.id,
  type: row.type,
  instance_id: row.instanceId,
  subject: row.subject,
  actor: { type: row.actorType, id: row.actorId },
  request_id: row.requestId,
  from_status: row.fromStatus as InstanceStatus | null,
  to_status: row.toStatus as InstanceStatus | null,
  generation: row.generation,
  reason: row.reason,
  created_at: toMicroseconds(row.createdAt),
})
