import { type Static, Type } from '@sinclair/typebox'
import { type Organization, tiers } from '#database/schema.ts'
import { Nullable, OneOf, Uri } from '#platform/typebox.ts'
import { paidTiers } from './stripe.ts'

export const Subscription = Type.Object(
  {
    tier: OneOf(tiers, 'The plan: `shrimp` has 1 instance, `crab` 10, `lobster` 500, `whale` any number.'),
    instance_limit: Nullable(Type.Integer({ description: 'The largest number of instances; null for no limit.' })),
    instance_count: Type.Integer({ description: 'The number of instances, without terminated ones.' }),
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

export const toSubscription = (row: Organization): Static<typeof Subscription> => ({
  tier: row.subscriptionTier,
  instance_limit: row.instanceLimit,
  instance_count: row.instanceCount,
  stripe_customer_id: row.stripeCustomerId,
  stripe_subscription_id: row.stripeSubscriptionId,
})
