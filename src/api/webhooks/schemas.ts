import { type Static, Type } from '@sinclair/typebox'
import { deliveryStatuses, disablings } from '#database/webhook-schema.ts'
import { eventTypeFilters } from '#history/event-types.ts'
import { PageQuery } from '#http/paging.ts'
import { toMicroseconds } from '#platform/timestamps.ts'
import { DateTime, Nullable, OneOf, plainText, Uri, Uuid } from '#platform/typebox.ts'
import { keptDays } from './queue.ts'
import type { Delivery as DeliveryRow, Webhook as WebhookRow } from './store.ts'

/** The number of digits that a JavaScript number holds exactly. */
const maxEventId = 999_999_999_999_999
const maxRotationSeconds = 7 * 24 * 60 * 60
const defaultRotationSeconds = 24 * 60 * 60

// Accepts any text: a malformed id is unknown, a 404.
export const WebhookParams = Type.Object({ webhook_id: Uuid('The id of the webhook.') })

export const DeliveryParams = Type.Object({
  ...WebhookParams.properties,
  event_id: Type.Integer({ minimum: 1, maximum: maxEventId, description: 'The id of the event.' }),
})

const Url = Type.String({
  format: 'uri',
  minLength: 1,
  maxLength: 2048,
  ...plainText,
  description:
    'Where messages are sent: an address with `https`, or `http`, that is public. It may have a path and a query, and no ' +
    'name and password. Redirects are not followed.',
})
const Description = Type.String({ maxLength: 512, ...plainText, description: 'A text for people.' })
const Types = Nullable(
  Type.Array(OneOf(eventTypeFilters), {
    minItems: 1,
    maxItems: 100,
    uniqueItems: true,
    description: 'The types of events that it gets; `instance.*` means all of a noun. null: all, also future ones.',
  }),
)

export const CreateWebhook = Type.Object(
  { url: Url, types: Type.Optional(Types), description: Type.Optional(Description) },
  { additionalProperties: false, examples: [{ url: 'https://example.com/chowder', types: ['response.*'] }] },
)

export const PatchWebhook = Type.Object(
  {
    url: Type.Optional(Url),
    types: Type.Optional(Types),
    description: Type.Optional(Description),
    enabled: Type.Optional(
      Type.Boolean({
        description:
          '`false`: it gets nothing more, and pending deliveries fail. `true`: it gets events from now on. The history ' +
          'has those between.',
      }),
    ),
  },
  { additionalProperties: false, minProperties: 1, examples: [{ enabled: true }] },
)

export const RotateSecret = Type.Object(
  {
    keep_previous_seconds: Type.Integer({
      minimum: 0,
      maximum: maxRotationSeconds,
      default: defaultRotationSeconds,
      description: 'For this long messages are signed with the secret before as well.',
    }),
  },
  { additionalProperties: false, examples: [{ keep_previous_seconds: 3600 }] },
)

const fields = {
  id: Uuid('The id of the webhook.'),
  url: Uri('Where messages are sent.'),
  description: Type.String({ description: 'A text for people.' }),
  types: Nullable(Type.Array(Type.String(), { description: 'The types of events that it gets; null for all.' })),
  enabled: Type.Boolean({ description: 'Whether it gets events.' }),
  disabled_for: Nullable(
    OneOf(
      disablings,
      'Why it gets none. `owner`: a call disabled it. `gone`: the receiver answered 410. `failing`: every try has failed ' +
        'for three days.',
    ),
  ),
  failing_since: Nullable(DateTime('Since when every try has failed; null after one that succeeded.')),
  created_at: DateTime('When the webhook was created.'),
}

const example = {
  id: '0199f7a2-5b1e-7c3d-9a4f-2e6b8d0c1f35',
  url: 'https://example.com/chowder',
  description: '',
  types: ['response.*'],
  enabled: true,
  disabled_for: null,
  failing_since: null,
  created_at: '2026-02-14T16:00:00.000000+00:00',
}

export const Webhook = Type.Object(fields, { $id: 'Webhook', examples: [example] })

export const WebhookWithSecret = Type.Object(
  {
    ...fields,
    secret: Type.String({ description: 'Verifies the signatures of its messages. It is in this answer only.' }),
  },
  { $id: 'WebhookWithSecret', examples: [{ ...example, secret: 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw…' }] },
)

export const Delivery = Type.Object(
  {
    event_id: Type.Integer({ description: 'The id of the event, and of the message.' }),
    event_type: Type.String({ description: 'The type of the event.' }),
    status: OneOf(
      deliveryStatuses,
      '`pending`: it is being sent, waits for its next try, or comes after another event of its instance. `delivered`: ' +
        'the receiver answered 2xx. `failed`: ten tries failed, or the webhook was disabled.',
    ),
    next_attempt_at: Nullable(
      DateTime('When it is tried next, or again if nothing more is known of the open try; null for none.'),
    ),
    tries: Type.Array(
      Type.Object({
        at: DateTime('When it was sent.'),
        duration_ms: Type.Integer({ description: 'How long the answer took.' }),
        status: Nullable(Type.Integer({ description: 'The HTTP status of the receiver; null without an answer.' })),
        error: Nullable(Type.String({ description: 'Why it failed; null for a success.' })),
      }),
      { description: 'The tries, oldest first.' },
    ),
  },
  {
    $id: 'WebhookDelivery',
    examples: [
      {
        event_id: 4711,
        event_type: 'response.completed',
        status: 'delivered',
        next_attempt_at: null,
        tries: [{ at: '2026-02-14T16:00:01.000000+00:00', duration_ms: 84, status: 200, error: null }],
      },
    ],
  },
)

export const DeliveryPage = Type.Object(
  {
    ...PageQuery.properties,
    status: Type.Optional(OneOf(deliveryStatuses, `Only those; deliveries are kept for ${keptDays} days.`)),
  },
  { additionalProperties: false },
)

export const toWebhook = (row: WebhookRow): Static<typeof Webhook> => ({
  id: row.id,
  url: row.url,
  description: row.description,
  types: row.types,
  enabled: row.disabledFor === null,
  disabled_for: row.disabledFor,
  failing_since: row.failingSince && toMicroseconds(row.failingSince),
  created_at: toMicroseconds(row.createdAt),
})

export const toDelivery = (row: DeliveryRow): Static<typeof Delivery> => ({
  event_id: row.eventId,
  event_type: row.eventType,
  status: row.status,
  next_attempt_at: row.nextAttemptAt && toMicroseconds(row.nextAttemptAt),
  tries: row.tries,
})
