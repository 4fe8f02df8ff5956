import type Stripe from 'stripe'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'

/** The tiers that can be bought; `whale` is given by the operator. */
export const paidTiers = ['crab', 'lobster'] as const
export type PaidTier = (typeof paidTiers)[number]

export interface BillingSettings {
  secretKey: string
  webhookSecret: string
  /** The id of the price of one instance on each tier. */
  prices: Record<PaidTier, string>
  /** Where Stripe's API is, when not at Stripe's. */
  apiUrl?: string | undefined
  /** Where Stripe's pages lead back to. */
  returnUrl(): string
  /** How long a call of Stripe may take; tests shorten it. */
  timeoutMs?: number
}

/** A subscription that is not over. */
interface Subscribed {
  id: string
  itemId: string
  /** Null while it is not paid for: `unpaid` after all reminders, or `paused`. */
  tier: PaidTier | null
  quantity: number
}

/** A verified event, as far as it is looked at: everything else is asked of Stripe. */
interface StripeEvent {
  id: string
  type: string
  customerId: string | null
}

/**
 * Stripe, as far as Chowder needs it. Every call ends in time and throws an AppError of kind `unavailable` in words
 * fit for callers, with Stripe's reason as its cause; the secrets are in neither.
 */
export interface Billing {
  /** Makes a customer for an organization. One too many, after a lost answer, costs nothing. */
  createCustomer(organizationId: string): Promise<string>
  checkoutUrl(order: { customerId: string; organizationId: string; tier: PaidTier; quantity: number }): Promise<string>
  portalUrl(customerId: string): Promise<string>
  /** The customer's subscriptions to our prices as they are now, the best first. More than one is one too many. */
  findSubscriptions(customerId: string): Promise<Subscribed[]>
  setQuantity(itemId: string, quantity: number, idempotencyKey: string): Promise<void>
  /** Ends a subscription at once and settles what was used. */
  cancelSubscription(id: string): Promise<void>
  /** Reads an event off the bytes that were signed. Throws invalid unless Stripe signed them within 5 minutes. */
  verifyEvent(payload: Buffer, signature: string): StripeEvent
}

const usualTimeoutMs = 10_000
const retryAfterSeconds = 5
/** `past_due` is still paid for: Stripe reminds the customer for weeks before it ends or is `unpaid`. */
const paidStatuses = new Set(['active', 'trialing', 'past_due'])
const unpaidStatuses = new Set(['unpaid', 'paused'])

const addressOf = (apiUrl: string) => {
  const { protocol, hostname, port } = new URL(apiUrl)
  return { protocol: protocol === 'http:' ? 'http' : 'https', host: hostname, ...(port && { port }) } as const
}

export async function createBilling(settings: BillingSettings): Promise<Billing> {
  const { secretKey, webhookSecret, prices, apiUrl, returnUrl, timeoutMs = usualTimeoutMs } = settings
  // 30 MB of memory that an installation without billing does not need.
  const { default: StripeClient } = await import('stripe')
  const { StripeError, StripeAPIError, StripeConnectionError, StripeRateLimitError } = StripeClient.errors
  const stripe = new StripeClient(secretKey, {
    timeout: timeoutMs,
    maxNetworkRetries: 0, // callers wait, and the row repeats what must not be lost
    telemetry: false,
    ...(apiUrl !== undefined && addressOf(apiUrl)),
  })

  /** An error of the package holds headers and bodies; of it only its words go on. */
  function toAppError(error: unknown): unknown {
    if (!(error instanceof StripeError)) return error
    const { type, statusCode, code, requestId, message } = error
    const said = message.replaceAll(secretKey, '…').replaceAll(webhookSecret, '…')
    const cause = new Error([type, statusCode, code, requestId, said].filter(Boolean).join(' '))
    const isAway = [StripeAPIError, StripeConnectionError, StripeRateLimitError].some((kind) => error instanceof kind)
    return new AppError('unavailable', isAway ? texts.stripeUnreachable : texts.stripeRefused, { cause, retryAfterSeconds })
  }

  async function ask<T>(request: Promise<T>): Promise<T> {
    try {
      return await request
    } catch (error) {
      throw toAppError(error)
    }
  }

  const tierOf = (item: Stripe.SubscriptionItem) => paidTiers.find((tier) => prices[tier] === item.price.id)

  /** Null for one that is not ours: not our price, not paid yet, or over. */
  function read(subscription: Stripe.Subscription): Subscribed | null {
    const isPaid = paidStatuses.has(subscription.status)
    if (!isPaid && !unpaidStatuses.has(subscription.status)) return null
    for (const item of subscription.items.data) {
      const tier = tierOf(item)
      if (!tier) continue
      return { id: subscription.id, itemId: item.id, tier: isPaid ? tier : null, quantity: item.quantity ?? 0 }
    }
    return null
  }

  const rank = ({ tier }: Subscribed) => (tier === null ? -1 : paidTiers.indexOf(tier))

  return {
    async createCustomer(organizationId) {
      return (await ask(stripe.customers.create({ metadata: { organization_id: organizationId } }))).id
    },
    async checkoutUrl({ customerId, organizationId, tier, quantity }) {
      const { url } = await ask(
        stripe.checkout.sessions.create({
          mode: 'subscription',
          customer: customerId,
          client_reference_id: organizationId,
          line_items: [{ price: prices[tier], quantity }],
          subscription_data: { metadata: { organization_id: organizationId } },
          success_url: returnUrl(),
          cancel_url: returnUrl(),
        }),
      )
      if (!url) throw new AppError('unavailable', texts.stripeUnreachable, { retryAfterSeconds })
      return url
    },
    async portalUrl(customerId) {
      return (await ask(stripe.billingPortal.sessions.create({ customer: customerId, return_url: returnUrl() }))).url
    },
    async findSubscriptions(customerId) {
      const { data } = await ask(stripe.subscriptions.list({ customer: customerId, limit: 100 }))
      return data.flatMap((one) => read(one) ?? []).sort((a, b) => rank(b) - rank(a))
    },
    async setQuantity(itemId, quantity, idempotencyKey) {
      await ask(stripe.subscriptionItems.update(itemId, { quantity }, { idempotencyKey }))
    },
    async cancelSubscription(id) {
      await ask(stripe.subscriptions.cancel(id, { invoice_now: true, prorate: true }))
    },
    verifyEvent(payload, signature) {
      try {
        const { id, type, data } = stripe.webhooks.constructEvent(payload, signature, webhookSecret)
        const { customer } = data.object as { customer?: string | { id: string } | null }
        return { id, type, customerId: (typeof customer === 'object' ? customer?.id : customer) ?? null }
      } catch {
        throw new AppError('invalid', texts.badSignature)
      }
    },
  }
}
