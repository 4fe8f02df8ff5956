import type Stripe from 'stripe'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'

/** The tiers that can be bought; the operator sets `whale`. */
export const paidTiers = ['crab', 'lobster'] as const
export type PaidTier = (typeof paidTiers)[number]

export interface BillingSettings {
  secretKey: string
  webhookSecret: string
  /** The address of Stripe's API; undefined for Stripe's own. */
  apiUrl?: string | undefined
  /** The address that Stripe's pages return to. */
  returnUrl(): string
  /** The time limit of a call of Stripe; 10 s by default. */
  timeoutMs?: number
}

/** A subscription that has not ended. */
interface ActiveSubscription {
  id: string
  itemId: string
  /** Null while it is not paid: Stripe's status is `unpaid` or `paused`. */
  tier: PaidTier | null
  quantity: number
}

/** The used fields of a verified event; Chowder asks Stripe for everything else. */
interface StripeEvent {
  id: string
  type: string
  customerId: string | null
}

/**
 * The functions of Stripe that Chowder uses. Every call has a time limit. It throws unavailable with a message for the
 * caller, and with Stripe's reason as its cause; neither holds a secret.
 */
export interface Billing {
  /** Creates a customer for an organization. After a lost answer a second one may exist, which costs nothing. */
  createCustomer(organizationId: string): Promise<string>
  checkoutUrl(order: { customerId: string; organizationId: string; tier: PaidTier; quantity: number }): Promise<string>
  portalUrl(customerId: string): Promise<string>
  /** The customer's current subscriptions to our prices, the highest tier first. There should be at most one. */
  findSubscriptions(customerId: string): Promise<ActiveSubscription[]>
  setQuantity(itemId: string, quantity: number, idempotencyKey: string): Promise<void>
  /** Ends a subscription at once and charges for the days that were used. */
  cancelSubscription(id: string): Promise<void>
  /** Verifies the signature of an event. Throws invalid unless Stripe signed these bytes in the last 5 minutes. */
  verifyEvent(payload: Buffer, signature: string): StripeEvent
}

/** The lookup key that the operator gives the price of one instance on a tier. */
const lookupKeyOf = (tier: PaidTier) => `chowder_${tier}`

const defaultTimeoutMs = 10_000
const retryAfterSeconds = 5
/** `past_due` counts as paid: Stripe reminds the customer for weeks before the subscription ends or is `unpaid`. */
const paidStatuses = new Set(['active', 'trialing', 'past_due'])
const unpaidStatuses = new Set(['unpaid', 'paused'])

const hostOptionsOf = (apiUrl: string) => {
  const { protocol, hostname, port } = new URL(apiUrl)
  return { protocol: protocol === 'http:' ? 'http' : 'https', host: hostname, ...(port && { port }) } as const
}

export async function createBilling(settings: BillingSettings): Promise<Billing> {
  const { secretKey, webhookSecret, apiUrl, returnUrl, timeoutMs = defaultTimeoutMs } = settings
  // The package takes 30 MB of memory, which an installation without billing does not need.
  const { default: StripeClient } = await import('stripe')
  const { StripeError, StripeAPIError, StripeConnectionError, StripeRateLimitError } = StripeClient.errors
  const stripe = new StripeClient(secretKey, {
    timeout: timeoutMs,
    maxNetworkRetries: 0, // callers wait, and a worker repeats a failed sync
    telemetry: false,
    ...(apiUrl !== undefined && hostOptionsOf(apiUrl)),
  })

  /** Keeps only the message of an error: the error itself holds headers and bodies. */
  function toAppError(error: unknown): unknown {
    if (!(error instanceof StripeError)) return error
    const { type, statusCode, code, requestId, message } = error
    const masked = message.replaceAll(secretKey, '…').replaceAll(webhookSecret, '…')
    const cause = new Error([type, statusCode, code, requestId, masked].filter(Boolean).join(' '))
    const isUnreachable = [StripeAPIError, StripeConnectionError, StripeRateLimitError].some(
      (kind) => error instanceof kind,
    )
    return isUnreachable
      ? new AppError('unavailable', texts.stripeUnreachable, { cause, retryAfterSeconds })
      : new AppError('unavailable', texts.stripeRefused, { cause, retryAfterSeconds })
  }

  async function call<T>(request: Promise<T>): Promise<T> {
    try {
      return await request
    } catch (error) {
      throw toAppError(error)
    }
  }

  const tierOf = (item: Stripe.SubscriptionItem) =>
    paidTiers.find((tier) => lookupKeyOf(tier) === item.price.lookup_key)

  /** The id of the price of one instance on a tier. */
  async function priceOf(tier: PaidTier): Promise<string> {
    const lookupKey = lookupKeyOf(tier)
    const { data } = await call(stripe.prices.list({ lookup_keys: [lookupKey], active: true }))
    if (data[0]) return data[0].id
    const cause = new Error(`no active price of Stripe has the lookup key ${lookupKey}`)
    throw new AppError('unavailable', texts.stripeRefused, { cause, retryAfterSeconds })
  }

  /** Null for a subscription that has ended, is not paid yet, or has none of our prices. */
  function toActive(subscription: Stripe.Subscription): ActiveSubscription | null {
    const isPaid = paidStatuses.has(subscription.status)
    if (!isPaid && !unpaidStatuses.has(subscription.status)) return null
    for (const item of subscription.items.data) {
      const tier = tierOf(item)
      if (!tier) continue
      return { id: subscription.id, itemId: item.id, tier: isPaid ? tier : null, quantity: item.quantity ?? 0 }
    }
    return null
  }

  const rank = ({ tier }: ActiveSubscription) => (tier === null ? -1 : paidTiers.indexOf(tier))

  return {
    async createCustomer(organizationId) {
      return (await call(stripe.customers.create({ metadata: { organization_id: organizationId } }))).id
    },
    async checkoutUrl({ customerId, organizationId, tier, quantity }) {
      const price = await priceOf(tier)
      const { url } = await call(
        stripe.checkout.sessions.create({
          mode: 'subscription',
          customer: customerId,
          client_reference_id: organizationId,
          line_items: [{ price, quantity }],
          subscription_data: { metadata: { organization_id: organizationId } },
          success_url: returnUrl(),
          cancel_url: returnUrl(),
        }),
      )
      if (!url) throw new AppError('unavailable', texts.stripeUnreachable, { retryAfterSeconds })
      return url
    },
    async portalUrl(customerId) {
      return (await call(stripe.billingPortal.sessions.create({ customer: customerId, return_url: returnUrl() }))).url
    },
    async findSubscriptions(customerId) {
      const { data } = await call(stripe.subscriptions.list({ customer: customerId, limit: 100 }))
      return data.flatMap((subscription) => toActive(subscription) ?? []).sort((a, b) => rank(b) - rank(a))
    },
    async setQuantity(itemId, quantity, idempotencyKey) {
      await call(stripe.subscriptionItems.update(itemId, { quantity }, { idempotencyKey }))
    },
    async cancelSubscription(id) {
      await call(stripe.subscriptions.cancel(id, { invoice_now: true, prorate: true }))
    },
    verifyEvent(payload, signature) {
      try {
        const { id, type, data } = stripe.webhooks.constructEvent(payload, signature, webhookSecret)
        const { customer } = data.object as { customer?: string | { id: string } | null }
        return { id, type, customerId: (typeof customer === 'object' ? customer?.id : customer) ?? null }
      } catch {
        throw new AppError('invalid_stripe_signature', texts.badSignature)
      }
    },
  }
}
