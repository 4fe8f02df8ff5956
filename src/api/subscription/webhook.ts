import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import { failures } from '#http/openapi.ts'
import { takeEvent } from './store.ts'
import type { Billing } from './stripe.ts'
import { type SyncDeps, syncSubscription } from './sync.ts'

/** What may change what an organization has. Anything else is answered and forgotten. */
const telling = new Set([
  'checkout.session.completed',
  'customer.subscription.created',
  'customer.subscription.updated',
  'customer.subscription.deleted',
  'invoice.payment_failed',
])

export interface WebhookDeps extends Pick<SyncDeps, 'db' | 'log'> {
  /** Throws not_implemented when Stripe is not set up. */
  needBilling(): Billing
}

/**
 * Takes Stripe's events in. An event is a bell: it says that something has changed, and what holds is asked of Stripe
 * afterwards, so that replays and disorder change nothing. One that was answered is not lost: the row is due, and the
 * rounds of the workers repeat what fails now.
 */
export const webhookRoutes: FastifyPluginAsyncTypebox<WebhookDeps> = async (app, { db, log, needBilling }) => {
  app.removeAllContentTypeParsers()
  // The signature is over the bytes as they came.
  app.addContentTypeParser('application/json', { parseAs: 'buffer' }, async (_request: unknown, body: Buffer) => body)

  app.post(
    '/v1/webhooks/stripe',
    {
      config: { access: 'public', event: null },
      schema: {
        operationId: 'receiveStripeEvent',
        summary: 'Receive an event from Stripe',
        description:
          'Called by Stripe only: point a webhook of your Stripe account here. The Stripe-Signature header is checked on the raw body. A tier changes within seconds of the event.',
        tags: ['subscription'],
        response: {
          200: Type.Object({ received: Type.Boolean() }, { examples: [{ received: true }] }),
          ...failures(400, 413, 415, 501),
        },
      },
    },
    async ({ body, headers }, reply) => {
      const billing = needBilling()
      const signature = headers['stripe-signature']
      const event = billing.verifyEvent(
        Buffer.isBuffer(body) ? body : Buffer.alloc(0),
        typeof signature === 'string' ? signature : '',
      )
      if (!telling.has(event.type)) return { received: true }
      const { isNew, organizationId } = await takeEvent(db, event)
      const about = { eventId: event.id, type: event.type, organizationId }
      if (!isNew) {
        log.info(about, 'an event of Stripe came again')
      } else if (organizationId === null) {
        log.warn(about, 'an event of Stripe is about a customer who is not ours')
      } else {
        // Nothing is taken for it: Stripe reminds the customer, and ends the subscription when that does not help.
        if (event.type === 'invoice.payment_failed') log.warn(about, 'an organization did not pay')
        else log.info(about, 'an event of Stripe')
        reply.raw.once('finish', () => {
          void syncSubscription({ db, log, billing }, organizationId).catch((error: unknown) => {
            log.warn({ err: error, ...about }, 'Stripe could not be asked; a worker will')
          })
        })
      }
      return { received: true }
    },
  )
}
