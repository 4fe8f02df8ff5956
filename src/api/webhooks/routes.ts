import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { Db } from '#database/client.ts'
import { idempotent } from '#http/idempotency.ts'
import { failures } from '#http/openapi.ts'
import { PageQuery, positionOf, sendPage } from '#http/paging.ts'
import { isId } from '#platform/ids.ts'
import type { Vault } from '#platform/secrets.ts'
import {
  CreateWebhook,
  Delivery,
  DeliveryPage,
  DeliveryParams,
  PatchWebhook,
  RotateSecret,
  toDelivery,
  toWebhook,
  Webhook,
  WebhookParams,
  WebhookWithSecret,
} from './schemas.ts'
import {
  createWebhook,
  deleteWebhook,
  getWebhook,
  listDeliveries,
  listWebhooks,
  patchWebhook,
  resend,
  rotateSecret,
} from './store.ts'

export interface WebhookDeps {
  db: Db
  vault: Vault
  publicUrl(): string
}

const isPosition = (text: string) => /^[1-9]\d{0,14}$/.test(text)

/** The routes of webhooks, and of what they have delivered. */
export const webhookRoutes: FastifyPluginAsyncTypebox<WebhookDeps> = async (app, deps) => {
  const { db, vault, publicUrl } = deps

  app.post(
    '/v1/webhooks',
    {
      config: { access: 'org', event: 'webhook.create', idempotency: 'transaction' },
      schema: {
        operationId: 'createWebhook',
        summary: 'Create a webhook',
        description:
          'Sends the events of the history to an address, as `{"type", "timestamp", "data"}` signed by ' +
          '[Standard Webhooks](https://www.standardwebhooks.com). Each event is sent at least once, and those of an ' +
          'instance in their order. With all types, or `webhook.*`, the first one is that of its own creation.',
        tags: ['webhooks'],
        body: CreateWebhook,
        response: { 201: WebhookWithSecret, ...failures(400, 409) },
      },
    },
    async (request, reply) => {
      const { url, types = null, description = '' } = request.body
      const created = await idempotent(deps, request, reply.code(201), async (tx) => {
        const { organizationId } = request.caller
        const { row, secret } = await createWebhook(tx, vault, organizationId, { url, types, description })
        return { ...toWebhook(row), secret }
      })
      return reply.send(created)
    },
  )

  app.get(
    '/v1/webhooks',
    {
      config: { access: 'org', inFlight: 'lists' },
      schema: {
        operationId: 'listWebhooks',
        summary: 'List webhooks',
        description: 'Newest first.',
        tags: ['webhooks'],
        querystring: PageQuery,
        response: { 200: Type.Array(Webhook), ...failures(400) },
      },
    },
    async ({ caller, query: { limit, cursor } }, reply) => {
      await sendPage(reply, {
        limit,
        position: positionOf(cursor, isId),
        item: Webhook,
        read: (atMost, position) => listWebhooks(db, caller.organizationId, { limit: atMost, position }),
        show: toWebhook,
        publicUrl,
      })
      return reply
    },
  )

  app.get(
    '/v1/webhooks/:webhook_id',
    {
      config: { access: 'org' },
      schema: {
        operationId: 'getWebhook',
        summary: 'Read a webhook',
        description: 'Says whether it gets events, and why not.',
        tags: ['webhooks'],
        params: WebhookParams,
        response: { 200: Webhook, ...failures(404) },
      },
    },
    async ({ caller, params }) => toWebhook(await getWebhook(db, caller.organizationId, params.webhook_id)),
  )

  app.patch(
    '/v1/webhooks/:webhook_id',
    {
      config: { access: 'org', event: 'webhook.update' },
      schema: {
        operationId: 'updateWebhook',
        summary: 'Change, disable or enable a webhook',
        description: 'Changes what is sent. Holds for pending deliveries too, except the types.',
        tags: ['webhooks'],
        params: WebhookParams,
        body: PatchWebhook,
        response: { 200: Webhook, ...failures(400, 404) },
      },
    },
    async ({ body, caller, params }) =>
      toWebhook(await patchWebhook(db, caller.organizationId, params.webhook_id, body)),
  )

  app.delete(
    '/v1/webhooks/:webhook_id',
    {
      config: { access: 'org', event: 'webhook.delete' },
      schema: {
        operationId: 'deleteWebhook',
        summary: 'Delete a webhook',
        description: 'Deletes its deliveries too. A message that is being sent may still arrive.',
        tags: ['webhooks'],
        params: WebhookParams,
        response: { 204: Type.Null(), ...failures(404) },
      },
    },
    async ({ caller, params }, reply) => {
      await deleteWebhook(db, caller.organizationId, params.webhook_id)
      return reply.code(204).send(null)
    },
  )

  app.post(
    '/v1/webhooks/:webhook_id/rotate_secret',
    {
      config: { access: 'org', event: 'webhook.rotate_secret', idempotency: 'transaction' },
      schema: {
        operationId: 'rotateWebhookSecret',
        summary: 'Give a webhook another secret',
        description:
          'Messages have the signatures of both secrets for a time, so that a receiver may have either. The secret is in ' +
          'this answer only.',
        tags: ['webhooks'],
        params: WebhookParams,
        body: RotateSecret,
        response: { 200: WebhookWithSecret, ...failures(400, 404, 409) },
      },
    },
    async (request, reply) => {
      const { caller, params, body } = request
      const rotated = await idempotent(deps, request, reply.code(200), async (tx) => {
        const seconds = body.keep_previous_seconds
        const { row, secret } = await rotateSecret(tx, vault, caller.organizationId, params.webhook_id, seconds)
        return { ...toWebhook(row), secret }
      })
      return reply.send(rotated)
    },
  )

  app.get(
    '/v1/webhooks/:webhook_id/deliveries',
    {
      config: { access: 'org', inFlight: 'lists' },
      schema: {
        operationId: 'listWebhookDeliveries',
        summary: 'List the deliveries of a webhook',
        description: 'The newest event first, each with its tries.',
        tags: ['webhooks'],
        params: WebhookParams,
        querystring: DeliveryPage,
        response: { 200: Type.Array(Delivery), ...failures(400, 404) },
      },
    },
    async ({ caller, params, query: { limit, cursor, status } }, reply) => {
      await sendPage(reply, {
        limit,
        position: positionOf(cursor, isPosition),
        item: Delivery,
        read: (atMost, position) =>
          listDeliveries(db, caller.organizationId, params.webhook_id, {
            status,
            limit: atMost,
            position: position === undefined ? undefined : Number(position),
          }),
        show: toDelivery,
        publicUrl,
      })
      return reply
    },
  )

  app.post(
    '/v1/webhooks/:webhook_id/deliveries/:event_id/resend',
    {
      config: { access: 'org', event: 'webhook.resend', idempotency: 'transaction' },
      schema: {
        operationId: 'resendWebhookDelivery',
        summary: 'Send an event again',
        description:
          'Sends an event that was delivered or has failed, also to a webhook that is disabled, and at once one that waits ' +
          'for its next try. Others of its instance may come before it.',
        tags: ['webhooks'],
        params: DeliveryParams,
        response: { 200: Delivery, ...failures(404, 409) },
      },
    },
    async (request, reply) => {
      const { caller, params } = request
      const sent = await idempotent(deps, request, reply.code(200), async (tx) =>
        toDelivery(await resend(tx, caller.organizationId, params.webhook_id, params.event_id)),
      )
      return reply.send(sent)
    },
  )
}
