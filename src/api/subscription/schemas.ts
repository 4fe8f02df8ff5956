import { type Static, Type } from '@sinclair/typebox'
import { type Organization, tiers } from '#database/schema.ts'
import type { StoredBytes } from '#database/stored-bytes.ts'
import { type StorageLimits, usedOf } from '#http/storage-limit.ts'
import { Nullable, OneOf, Uri } from '#http/validation.ts'
import { paidTiers } from './stripe.ts'

const Bytes = (description: string) => Type.Integer({ description })

export const Subscription = Type.Object(
  {
    tier: OneOf(tiers, 'The plan: `shrimp` has 1 instance, `crab` 10, `lobster` 500, `whale` any number.'),
    instance_limit: Nullable(Type.Integer({ description: 'The largest number of instances; null for no limit.' })),
    instance_count: Type.Integer({ description: 'The number of instances, without terminated ones.' }),
    storage: Type.Object(
      {
        used_bytes: Bytes('What counts: responses, configurations and kept answers together.'),
        limit_bytes: Nullable(
          Bytes('The most that may be stored; null for no limit. What would store more is then a 402.'),
        ),
        responses_bytes: Bytes('Stored responses. They go with their session and their instance, or after 30 days.'),
        instances_bytes: Bytes('Configurations, instructions and labels of instances, their channels and skills.'),
        idempotency_bytes: Bytes('Answers that are kept for their `Idempotency-Key`, for 24 hours.'),
        events_bytes: Bytes('The history. It does not count under `limit_bytes`.'),
        events_limit_bytes: Nullable(
          Bytes('Beyond it, the oldest events of the history are deleted; null for no limit.'),
        ),
      },
      { description: 'The bytes that the organization stores in the database of the server.' },
    ),
    stripe_customer_id: Nullable(Type.String({ description: 'null before the first checkout.' })),
    stripe_subscription_id: Nullable(Type.String({ description: 'null without a subscription.' })),
  },
  {
    $id: 'Subscription',
    examples: [
      {
        tier: 'lobster',
        instance_limit: 500,
        instance_count: 12,
        storage: {
          used_bytes: 48_234_112,
          limit_bytes: 10_737_418_240,
          responses_bytes: 47_185_920,
          instances_bytes: 982_016,
          idempotency_bytes: 66_176,
          events_bytes: 2_097_152,
          events_limit_bytes: 1_073_741_824,
        },
        stripe_customer_id: 'cus_abc123',
        stripe_subscription_id: 'sub_def456',
      },
    ],
  },
)

export const Checkout = Type.Object(
  { tier: OneOf(paidTiers, 'The plan to buy.') },
  { additionalProperties: false, examples: [{ tier: 'crab' }] },
)

export const CheckoutUrl = Type.Object(
  { url: Uri('The address for the user, valid for 24 hours.') },
  { examples: [{ url: 'https://checkout.stripe.com/c/pay/cs_test_a1b2c3' }] },
)

export const PortalUrl = Type.Object(
  { url: Uri('The address for the user, valid for a few minutes.') },
  { examples: [{ url: 'https://billing.stripe.com/p/session/test_x1y2z3' }] },
)

/** 0 is no limit. */
const orNull = (limit: number) => (limit === 0 ? null : limit)

export const toSubscription = (
  row: Organization,
  stored: StoredBytes,
  limits: StorageLimits,
): Static<typeof Subscription> => ({
  tier: row.subscriptionTier,
  instance_limit: row.instanceLimit,
  instance_count: row.instanceCount,
  storage: {
    used_bytes: usedOf(stored),
    limit_bytes: orNull(limits.bytes),
    responses_bytes: stored.responses,
    instances_bytes: stored.instances,
    idempotency_bytes: stored.idempotency_answers,
    events_bytes: stored.events,
    events_limit_bytes: orNull(limits.eventBytes),
  },
  stripe_customer_id: row.stripeCustomerId,
  stripe_subscription_id: row.stripeSubscriptionId,
})
