import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import { failures } from '#http/openapi.ts'
import { storeEvent } from './store.ts'
import type { Billing } from './stripe.ts'
import { type SyncDeps, syncSubscription } from './sync.ts'

/** The types of events that can change the tier of an organization. Other events are answered and ignored. */
const relevantTypes = new Set([
  'checkout.session.completed',
  'customer.subscription.created',
  'customer.subscription.updated',
  'customer.subscription.deleted',
  'invoice.payment_failed',
])

export interface WebhookDeps extends Pick<SyncDeps, 'db' | 'log'> {
  /** Throws not_implemented when Stripe is not set up. */
  requireBilling(): Billing
}

/**
 * Receives Stripe's events. An event only announces a change; Chowder then asks Stripe for the current state, so that
 * repeated and reordered events do no harm. Once an event is answered, its organization is due, and the workers'
 * periodic sync retries a failure.
 */
export const webhookRoutes: FastifyPluginAsyncTypebox<WebhookDeps> = async (app, { db, log, requireBilling }) => {
  app.removeAllContentTypeParsers()
  // The signature covers the raw bytes.
  app.addContentTypeParser('application/json', { parseAs: 'buffer' }, async (_request: unknown, body: Buffer) => body)

  app.post(
    '/v1/webhooks/stripe',
    {
      config: { access: 'public', event: null },
      schema: {
        operationId: 'receiveStripeEvent',
        summary: 'Receive an event from Stripe',
        description:
          'Only Stripe calls this: register the address as a webhook of your Stripe account. The header ' +
          '`Stripe-Signature` is verified over the raw body. A tier changes within seconds of the event.',
        tags: ['subscription'],
        response: {
          200: Type.Object(
            { received: Type.Boolean({ description: 'Always true.' }) },
            { examples: [{ received: true }] },
          ),
          ...failures(400, 413, 415, 501),
        },
      },
    },
    async ({ body, headers }, reply) => {
      const billing = requireBilling()
      const signature = headers['stripe-signature']
      const event = billing.verifyEvent(
        Buffer.isBuffer(body) ? body : Buffer.alloc(0),
        typeof signature === 'string' ? signature : '',
      )
      if (!relevantTypes.has(event.type)) return { received: true }
      const { isNew, organizationId } = await storeEvent(db, event)
      const about = { eventId: event.id, type: event.type, organizationId }
      if (!isNew) {
        log.info(about, 'a Stripe event was received again')
      } else if (organizationId === null) {
        log.warn(about, 'a Stripe event names an unknown customer')
      } else {
        // An unpaid invoice changes no tier: Stripe reminds the customer first, and ends the subscription later.
        if (event.type === 'invoice.payment_failed') log.warn(about, 'an organization has not paid an invoice')
        else log.info(about, 'a Stripe event was received')
        reply.raw.once('finish', () => {
          void syncSubscription({ db, log, billing }, organizationId).catch((error: unknown) => {
            log.warn({ err: error, ...about }, 'the sync after a Stripe event failed; a worker will repeat it')
          })
        })
      }
      return { received: true }
    },
  )
}
