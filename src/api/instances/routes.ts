import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { FastifyReply } from 'fastify'
import { requireEgress } from '#egress/store.ts'
import { hasPermission } from '#http/caller.ts'
import { clientLeft } from '#http/client-left.ts'
import { shownAs } from '#http/examples.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import { positionOf, sendPage } from '#http/paging.ts'
import type { InstanceSummary } from '#instances/find.ts'
import type { ChangeDeps } from '#instances/gateway/change.ts'
import { terminateInstance } from '#instances/intent.ts'
import { getInstance } from '#instances/row.ts'
import { canStillReach } from '#instances/status.ts'
import { readUntil, waitUntilSettled } from '#instances/wait.ts'
import { isId } from '#platform/ids.ts'
import { type ActionDeps, actionRoutes } from './action-routes.ts'
import { type CreateDeps, createInstance } from './create.ts'
import { listInstances } from './list.ts'
import { patchInstance, requireNoneOfOrganization } from './patch.ts'
import { CreateInstance, ListInstances, PatchInstance, WaitForStatus, WaitQuery } from './requests.ts'
import { createdInstance, Instance } from './schemas.ts'
import { createShow, type ShowDeps } from './show.ts'
import { InstanceStatus, toInstanceStatus } from './status.ts'

export interface InstanceDeps
  extends ChangeDeps,
    ShowDeps,
    Omit<CreateDeps, 'showWith'>,
    Omit<ActionDeps, 'show' | 'untilLeft'> {}

/** With long instructions and overrides, a page has fewer instances than its limit. */
const maxPageBytes = 1024 * 1024

/** The routes of instances. They record an intent and enqueue it; workers carry it out. */
export const instanceRoutes: FastifyPluginAsyncTypebox<InstanceDeps> = async (app, deps) => {
  const { db, queue, findSummary, forgetGateway, publicUrl } = deps
  const { regions } = deps
  const closing = new AbortController()
  app.addHook('preClose', async () => closing.abort())
  /** Aborted when the client leaves or the server closes. */
  const untilLeft = (reply: FastifyReply) => AbortSignal.any([clientLeft(reply), closing.signal])
  const { show, showWith, view } = createShow(deps)

  app.post(
    '/v1/instances',
    {
      config: { access: 'org', event: 'instance.create', idempotency: 'transaction' },
      schema: {
        operationId: 'createInstance',
        summary: 'Create an instance',
        description:
          'Returns at once, with an instance that is `provisioning`. It is `running` once its agent takes messages; ' +
          'with `wait`, the call waits for it. Your organization must have a key for the model provider, and its ' +
          'plan must allow another instance.',
        tags: ['instances'],
        querystring: WaitQuery,
        body: CreateInstance,
        response: { 200: Instance, 201: shownAs(Instance, createdInstance), ...failures(400, 402, 409, 507) },
      },
    },
    async (request, reply) => {
      const { answer, readRow } = await createInstance({ ...deps, showWith }, request, reply)
      const waitMs = request.query.wait * 1000
      if (waitMs === 0) return reply.send(answer)
      const settled = await waitUntilSettled(db, await readRow(), { waitMs, signal: untilLeft(reply) })
      return reply.send(await show(settled.row))
    },
  )

  app.get(
    '/v1/instances',
    {
      config: { access: 'org', inFlight: 'lists' },
      schema: {
        operationId: 'listInstances',
        summary: 'List instances',
        description:
          'Newest first. Terminated instances are listed only when `status` asks for them. The header `Link` names ' +
          'the next page while there is one. A page may hold fewer instances than `limit`, when their overrides and ' +
          'instructions are long.',
        tags: ['instances'],
        querystring: ListInstances,
        response: { 200: Type.Array(Instance), ...failures(400) },
      },
    },
    async ({ caller, query: { cursor, limit, ...filter } }, reply) => {
      await sendPage(reply, {
        limit,
        position: positionOf(cursor, isId),
        maxBytes: maxPageBytes,
        item: Instance,
        read: (atMost, position) =>
          listInstances(db, caller.organizationId, { ...filter, limit: atMost, position }, regions),
        show: ({ row, budgets }) => showWith(row, budgets),
        publicUrl,
      })
      return reply
    },
  )

  app.get(
    '/v1/instances/:instance_id',
    {
      config: { access: 'read' },
      schema: {
        operationId: 'getInstance',
        summary: 'Read an instance',
        description:
          'A terminated instance can be read for 30 days, without `openclaw_config` and `instructions` once its sandbox ' +
          'is destroyed. `openclaw_config` may hold tokens, and `instructions` what is not meant for everybody: a ' +
          'scoped key without the permission `configure` gets null in their place, and `error_message` without the words of ' +
          'the gateway.',
        tags: ['instances'],
        params: InstanceParams,
        response: { 200: Instance, ...failures(404) },
      },
    },
    async ({ caller, params }) => {
      const mayConfigure = hasPermission(caller, 'configure')
      return show(await getInstance(db, caller.organizationId, params.instance_id), mayConfigure)
    },
  )

  app.get(
    '/v1/instances/:instance_id/status',
    {
      config: { access: 'read' },
      schema: {
        operationId: 'getInstanceStatus',
        summary: 'Read the status of an instance',
        description:
          'Cheap enough to poll. With `wait`, the response comes as soon as the instance has that status, as soon as ' +
          'it cannot reach it without another call, or after `timeout` seconds. `status` in the response says ' +
          'which.',
        tags: ['instances'],
        params: InstanceParams,
        querystring: WaitForStatus,
        response: { 200: InstanceStatus, ...failures(404) },
      },
    },
    async ({ caller, params, query: { wait, timeout } }, reply) => {
      const read = () => findSummary(caller.organizationId, params.instance_id)
      const summary = await read()
      if (wait === undefined) return toInstanceStatus(summary, view())
      const isFinal = (latest: InstanceSummary) => !canStillReach(wait, latest)
      const { organizationId } = caller
      const options = { organizationId, waitMs: timeout * 1000, signal: untilLeft(reply) }
      const latest = await readUntil(summary, isFinal, read, options)
      return toInstanceStatus(latest, view())
    },
  )

  app.patch(
    '/v1/instances/:instance_id',
    {
      config: { access: 'configure', event: 'instance.update' },
      schema: {
        operationId: 'updateInstance',
        summary: 'Change an instance',
        description:
          'Changes the fields that are sent and keeps the others. `openclaw_config` replaces the stored overrides. ' +
          'A running agent uses the new configuration before the response is sent. When OpenClaw ' +
          'refuses it, the response is a 400 with OpenClaw’s words, and nothing has changed.',
        tags: ['instances'],
        params: InstanceParams,
        body: PatchInstance,
        response: { 200: Instance, ...failures(400, 404, 409, 502, 504, 507) },
      },
    },
    async ({ body, caller, params }) => {
      const isScoped = caller.permissions !== null
      if (isScoped) requireNoneOfOrganization(body)
      if (body.egress !== undefined)
        await requireEgress(db, { organizationId: caller.organizationId, isScoped }, params.instance_id, body.egress)
      return show(await patchInstance(deps, caller.organizationId, params.instance_id, body))
    },
  )

  app.delete(
    '/v1/instances/:instance_id',
    {
      config: { access: 'org', event: 'instance.delete' },
      schema: {
        operationId: 'deleteInstance',
        summary: 'Delete an instance',
        description:
          'Destroys the agent with its files, sessions and settings, permanently. From this call on, the instance ' +
          'does not count under your plan. Deleting it again changes nothing.',
        tags: ['instances'],
        params: InstanceParams,
        response: { 204: Type.Null(), ...failures(404) },
      },
    },
    async ({ caller, params }, reply) => {
      const terminated = await terminateInstance(db, caller.organizationId, params.instance_id)
      forgetGateway(caller.organizationId, params.instance_id)
      if (terminated) queue.enqueue()
      return reply.code(204).send(null)
    },
  )

  await app.register(actionRoutes, { ...deps, show, untilLeft })
}
