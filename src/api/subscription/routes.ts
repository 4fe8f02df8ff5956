import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { Db } from '#database/client.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { failures } from '#http/openapi.ts'
import { NoBody } from '#http/validation.ts'
import type { Logger } from '#platform/log.ts'
import { Checkout, CheckoutUrl, PortalUrl, Subscription, toSubscription } from './schemas.ts'
import { getBillingOrganization, storeCustomer } from './store.ts'
import type { Billing } from './stripe.ts'
import { webhookRoutes } from './webhook.ts'

export interface SubscriptionDeps {
  db: Db
  log: Pick<Logger, 'info' | 'warn' | 'error'>
  /** null when the settings of Stripe are absent. */
  billing: Billing | null
}

/** The tier of an organization, its limit and its use. Payment takes place on Stripe's pages. */
export const subscriptionRoutes: FastifyPluginAsyncTypebox<SubscriptionDeps> = async (app, deps) => {
  const { db, log, billing } = deps
  const requireBilling = () => {
    if (!billing) throw new AppError('billing_not_configured', texts.noBilling)
    return billing
  }

  await app.register(webhookRoutes, { db, log, requireBilling })

  app.get(
    '/v1/subscription',
    {
      config: { access: 'org' },
      schema: {
        operationId: 'getSubscription',
        summary: 'Read the tier and its use',
        description:
          'The tier of the organization, the limit of its instances and their number. Stopped instances count, ' +
          'terminated ones do not.',
        tags: ['subscription'],
        response: { 200: Subscription },
      },
    },
    async ({ caller: { organizationId } }) => toSubscription(await getBillingOrganization(db, organizationId)),
  )

  app.post(
    '/v1/subscription/checkout',
    {
      config: { access: 'org', event: null },
      schema: {
        operationId: 'createCheckout',
        summary: 'Create a checkout page',
        description:
          'Answers the address of a page of Stripe Checkout for the user. The tier and its limit are raised within ' +
          'seconds of the payment. The price is per instance; the quantity follows the number of instances. When a ' +
          'subscription ends, the tier is shrimp again: no instance is stopped, but creates are refused with 402 ' +
          'while the limit is exceeded.',
        tags: ['subscription'],
        body: Checkout,
        response: { 200: CheckoutUrl, ...failures(409, 501) },
      },
    },
    async ({ body, caller }) => {
      const stripe = requireBilling()
      const organization = await getBillingOrganization(db, caller.organizationId)
      if (organization.stripeSubscriptionId) throw new AppError('already_subscribed', texts.subscribed)
      if (organization.subscriptionTier === 'whale') throw new AppError('tier_by_arrangement', texts.tierByArrangement)
      const { id: organizationId, instanceCount, stripeCustomerId } = organization
      const customerId =
        stripeCustomerId ?? (await storeCustomer(db, organizationId, await stripe.createCustomer(organizationId)))
      // Checkout refuses a quantity of 0.
      const quantity = Math.max(1, instanceCount)
      return { url: await stripe.checkoutUrl({ customerId, organizationId, tier: body.tier, quantity }) }
    },
  )

  app.post(
    '/v1/subscription/portal',
    {
      config: { access: 'org', event: null },
      schema: {
        operationId: 'createPortal',
        summary: 'Create a page to manage the subscription',
        description:
          'Answers the address of a page of the Stripe Customer Portal, where the user switches between crab and ' +
          'lobster, changes the payment method, sees invoices and cancels. For an organization that never ' +
          'subscribed it is a 400.',
        tags: ['subscription'],
        body: NoBody,
        response: { 200: PortalUrl, ...failures(400, 501) },
      },
    },
    async ({ caller }) => {
      const stripe = requireBilling()
      const { stripeCustomerId } = await getBillingOrganization(db, caller.organizationId)
      if (!stripeCustomerId) throw new AppError('no_billing_account', texts.noCustomer)
      return { url: await stripe.portalUrl(stripeCustomerId) }
    },
  )
}
