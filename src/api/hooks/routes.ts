import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import { idempotent } from '#http/idempotency.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import { PageQuery, positionOf, sendPage } from '#http/paging.ts'
import { getInstance } from '#instances/row.ts'
import { isId } from '#platform/ids.ts'
import { type ReceiveParts, receiveCall } from './receive.ts'
import { CreateHook, Hook, HookParams, HookWithSecret, PatchHook, Received, ReceiveParams, toHook } from './schemas.ts'
import { createHook, deleteHook, getHook, type Hook as HookRow, listHooks, patchHook } from './store.ts'

export interface HookDeps extends Pick<ReceiveParts, 'db' | 'vault'> {
  publicUrl(): string
  unattended: Pick<ReceiveParts, 'begin' | 'showId'>
}

/** GitHub sends at most 25 MB, and mostly some kB. A message has a part of it. */
const maxBodyBytes = 2 * 1024 ** 2

/** The routes of hooks, and the address that other services call. A key needs `configure`. */
export const hookRoutes: FastifyPluginAsyncTypebox<HookDeps> = async (app, deps) => {
  const { db, vault, publicUrl, unattended } = deps
  const show = (row: HookRow) => toHook(vault, publicUrl(), row)

  app.post(
    '/v1/instances/:instance_id/hooks',
    {
      config: { access: 'configure', event: 'hook.create', idempotency: 'transaction' },
      schema: {
        operationId: 'createHook',
        summary: 'Create a hook',
        description:
          'Makes an address at which GitHub, Slack or another service begins a background turn of the agent. Calls ' +
          'without a good signature are refused, and a repeated one begins no second turn.',
        tags: ['hooks'],
        params: InstanceParams,
        body: CreateHook,
        response: { 201: HookWithSecret, ...failures(400, 404, 409) },
      },
    },
    async (request, reply) => {
      const { caller, params, body } = request
      const instance = await getInstance(db, caller.organizationId, params.instance_id)
      const created = await idempotent(deps, request, reply.code(201), async (tx) => {
        const { row, secret } = await createHook(tx, vault, instance, body)
        return { ...show(row), secret }
      })
      return reply.send(created)
    },
  )

  app.get(
    '/v1/instances/:instance_id/hooks',
    {
      config: { access: 'configure', inFlight: 'lists' },
      schema: {
        operationId: 'listHooks',
        summary: 'List the hooks of an instance',
        description: 'Newest first.',
        tags: ['hooks'],
        params: InstanceParams,
        querystring: PageQuery,
        response: { 200: Type.Array(Hook), ...failures(400, 404) },
      },
    },
    async ({ caller, params, query: { limit, cursor } }, reply) => {
      const instance = await getInstance(db, caller.organizationId, params.instance_id)
      await sendPage(reply, {
        limit,
        position: positionOf(cursor, isId),
        item: Hook,
        read: (atMost, position) => listHooks(db, instance, { limit: atMost, position }),
        show,
        publicUrl,
      })
      return reply
    },
  )

  app.get(
    '/v1/instances/:instance_id/hooks/:hook_id',
    {
      config: { access: 'configure' },
      schema: {
        operationId: 'getHook',
        summary: 'Read a hook',
        description: 'Has the last 50 calls.',
        tags: ['hooks'],
        params: HookParams,
        response: { 200: Hook, ...failures(404) },
      },
    },
    async ({ caller, params }) => {
      const { id } = await getInstance(db, caller.organizationId, params.instance_id)
      return show(await getHook(db, id, params.hook_id))
    },
  )

  app.patch(
    '/v1/instances/:instance_id/hooks/:hook_id',
    {
      config: { access: 'configure', event: 'hook.update' },
      schema: {
        operationId: 'updateHook',
        summary: 'Change or pause a hook',
        description: 'Changes what is sent. The address stays.',
        tags: ['hooks'],
        params: HookParams,
        body: PatchHook,
        response: { 200: Hook, ...failures(400, 404) },
      },
    },
    async ({ body, caller, params }) => {
      const { id } = await getInstance(db, caller.organizationId, params.instance_id)
      return show(await patchHook(db, vault, id, params.hook_id, body))
    },
  )

  app.delete(
    '/v1/instances/:instance_id/hooks/:hook_id',
    {
      config: { access: 'configure', event: 'hook.delete' },
      schema: {
        operationId: 'deleteHook',
        summary: 'Delete a hook',
        description: 'Its address is a 404 from then on. Turns that have begun go on.',
        tags: ['hooks'],
        params: HookParams,
        response: { 204: Type.Null(), ...failures(404) },
      },
    },
    async ({ caller, params }, reply) => {
      const { id } = await getInstance(db, caller.organizationId, params.instance_id)
      await deleteHook(db, id, params.hook_id)
      return reply.code(204).send(null)
    },
  )

  await app.register(async (calls) => {
    calls.removeAllContentTypeParsers()
    // The signature covers the raw bytes.
    calls.addContentTypeParser('application/json', { parseAs: 'buffer' }, async (_: unknown, body: Buffer) => body)
    calls.post(
      '/v1/hooks/:hook_id',
      {
        config: { access: 'public', event: null },
        bodyLimit: maxBodyBytes,
        schema: {
          operationId: 'receiveHookCall',
          summary: 'Call a hook',
          description:
            'Other services call this. The body is JSON, and the signature is in the headers of its sender: of GitHub, of ' +
            'Slack, or of Standard Webhooks.',
          tags: ['hooks'],
          params: ReceiveParams,
          response: { 200: Received, ...failures(400, 401, 402, 404, 409, 413, 415, 429, 503) },
        },
      },
      async ({ body, headers, params }) => {
        const { hook_id: id } = params as { hook_id: string }
        const bytes = Buffer.isBuffer(body) ? body : Buffer.alloc(0)
        const { responseId, challenge } = await receiveCall({ db, vault, ...unattended }, id, { headers, body: bytes })
        return { response_id: responseId, ...(challenge !== undefined && { challenge }) }
      },
    )
  })
}
