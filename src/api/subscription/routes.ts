import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { Db } from '#database/client.ts'
import { failures } from '#http/openapi.ts'
import { NoBody } from '#http/validation.ts'
import { AppError } from '#platform/errors.ts'
import type { Logger } from '#platform/log.ts'
import { texts } from '#platform/texts.ts'
import { Checkout, CheckoutUrl, PortalUrl, Subscription, toSubscription } from './schemas.ts'
import { getBillingOrganization, rememberCustomer } from './store.ts'
import type { Billing } from './stripe.ts'
import { webhookRoutes } from './webhook.ts'

export interface SubscriptionDeps {
  db: Db
  log: Pick<Logger, 'info' | 'warn' | 'error'>
  /** Null without Stripe's settings. */
  billing: Billing | null
}

/** What an organization may have and what it pays for; paying itself happens on Stripe's pages. */
export const subscriptionRoutes: FastifyPluginAsyncTypebox<SubscriptionDeps> = async (app, { db, log, billing }) => {
  const needBilling = () => {
    if (!billing) throw new AppError('not_implemented', texts.noBilling)
    return billing
  }

  await app.register(webhookRoutes, { db, log, needBilling })

  app.get(
    '/v1/subscription',
    {
      config: { access: 'org' },
      schema: {
        operationId: 'getSubscription',
        summary: 'Read the tier and what of it is used',
        description:
          'The tier of the organization, how many instances it may have and how many it has. Stopped instances count, terminated ones do not.',
        tags: ['subscription'],
        response: { 200: Subscription },
      },
    },
    async ({ caller }) => toSubscription(await getBillingOrganization(db, caller.organizationId)),
  )

  app.post(
    '/v1/subscription/checkout',
    {
      config: { access: 'org', event: null },
      schema: {
        operationId: 'createCheckout',
        summary: 'Get an address to subscribe at',
        description:
          'Answers an address of Stripe Checkout to send the user to. The tier and its limit are raised within seconds of the payment, without polling. The price is per instance; the quantity follows the number of instances by itself. When a subscription ends the tier is shrimp again: nothing is stopped, but creates are refused with 402 while there are more instances than the limit.',
        tags: ['subscription'],
        body: Checkout,
        response: { 200: CheckoutUrl, ...failures(409, 501) },
      },
    },
    async ({ body, caller }) => {
      const stripe = needBilling()
      const organization = await getBillingOrganization(db, caller.organizationId)
      if (organization.stripeSubscriptionId) throw new AppError('conflict', texts.subscribed)
      if (organization.subscriptionTier === 'whale') throw new AppError('conflict', texts.tierByArrangement)
      const { id: organizationId, instanceCount, stripeCustomerId } = organization
      const customerId =
        stripeCustomerId ?? (await rememberCustomer(db, organizationId, await stripe.createCustomer(organizationId)))
      // Checkout takes no zero.
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
        summary: 'Get an address to manage the subscription at',
        description:
          'Answers an address of the Stripe Customer Portal, where the user switches between crab and lobster, changes the payment method, sees invoices and cancels. An organization that never subscribed has none: 400.',
        tags: ['subscription'],
        body: NoBody,
        response: { 200: PortalUrl, ...failures(400, 501) },
      },
    },
    async ({ caller }) => {
      const stripe = needBilling()
      const { stripeCustomerId } = await getBillingOrganization(db, caller.organizationId)
      if (!stripeCustomerId) throw new AppError('invalid', texts.noCustomer)
      return { url: await stripe.portalUrl(stripeCustomerId) }
    },
  )
}
