import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { FastifyReply } from 'fastify'
import type { ShownBudget } from '#budgets/schemas.ts'
import { readOwnBudgets, setBudgets } from '#budgets/store.ts'
import type { Db } from '#database/client.ts'
import type { Instance as Row } from '#database/schema.ts'
import { hasPermission } from '#http/auth.ts'
import { clientLeft } from '#http/client-left.ts'
import { shownAs } from '#http/examples.ts'
import { idempotent } from '#http/idempotency.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import { positionOf, sendPage } from '#http/paging.ts'
import { NoBody } from '#http/validation.ts'
import { createInstance } from '#instances/create.ts'
import { ExternalIdTaken } from '#instances/external-id.ts'
import type { FindSummary, InstanceSummary, RunningGateways } from '#instances/find.ts'
import { changeIntent, terminateInstance } from '#instances/intent.ts'
import { isolationOf, requireIsolation } from '#instances/isolation.ts'
import { requireAllowed } from '#instances/resources.ts'
import { getInstance, unsealSettings } from '#instances/row.ts'
import { canStillReach } from '#instances/status.ts'
import { readUntil, settleTimeoutMs, waitUntilSettled } from '#instances/wait.ts'
import { type HostDisk, requireHostRoom } from '#platform/host-disk.ts'
import { isId } from '#platform/ids.ts'
import { createdInstance, startingInstance, stoppedInstance, stoppingInstance } from './examples.ts'
import { listInstances } from './list.ts'
import { newInstance, requireStartable } from './new-instance.ts'
import { type PatchDeps, patchInstance, requireNoneOfOrganization, storesMore } from './patch.ts'
import { CreateInstance, ListInstances, PatchInstance, WaitForStatus, WaitQuery } from './requests.ts'
import { Instance, InstanceStatus, toInstance, toInstanceStatus } from './schemas.ts'

export interface InstanceDeps extends PatchDeps {
  findSummary: FindSummary
  hostDisk: HostDisk
  /** Called before the response to a stop or a delete: from then on, messages are refused. */
  forgetGateway: RunningGateways['forget']
  /** The address that clients reach the API at. */
  publicUrl(): string
  /** Whether no worker has been seen lately. */
  areWorkersMissing(): boolean
  /** The driver that new instances are created on. */
  sandboxDriver: string
  /** Whether the tools of agents can have a room of their own. */
  hasTwoRooms: boolean
  /** The oldest version of OpenClaw that agents may start with. */
  minOpenclawVersion: string
  /** Whether a higher limit can be bought. */
  hasBilling: boolean
}

/** With more instructions and overrides, a page has fewer instances than its limit. */
const maxPageBytes = 1024 * 1024

const actions = {
  start: {
    summary: 'Start an instance',
    description:
      'Starts a `stopped` instance, or tries one in `error` again. Waits up to 60 seconds for the result, which may ' +
      'be `error`. A 202 means that the start continues.',
    answers: { 200: Instance, 202: shownAs(Instance, startingInstance), ...failures(507) },
  },
  stop: {
    summary: 'Stop an instance',
    description:
      'Stops a `running` instance and keeps its files and sessions. From this call on, messages are refused. Waits ' +
      'up to 60 seconds for the end of the agent. A 202 means that the stop continues.',
    answers: { 200: shownAs(Instance, stoppedInstance), 202: shownAs(Instance, stoppingInstance) },
  },
}

/** The routes of instances. They record what is asked for and enqueue it; workers carry it out. */
export const instanceRoutes: FastifyPluginAsyncTypebox<InstanceDeps> = async (app, deps) => {
  const { db, vault, queue, findSummary, forgetGateway, publicUrl, areWorkersMissing } = deps
  const { sandboxDriver, minOpenclawVersion, hasTwoRooms, hasBilling } = deps
  const closing = new AbortController()
  app.addHook('preClose', async () => closing.abort())
  /** Aborted when the client leaves or the server closes: nobody waits for the response any more. */
  const untilLeft = (reply: FastifyReply) => AbortSignal.any([clientLeft(reply), closing.signal])
  const requireStartableInstance = async (organizationId: string, id: string) =>
    requireStartable((await findSummary(organizationId, id)).openclawVersion, minOpenclawVersion)
  const view = () => ({ publicUrl: publicUrl(), areWorkersMissing: areWorkersMissing() })
  const showWith = (row: Omit<Row, 'sealedToken'>, budgets: ShownBudget[], mayConfigure = true) =>
    toInstance(row, unsealSettings(vault, row), budgets, { ...view(), mayConfigure })
  const show = async (row: Row, mayConfigure = true) => showWith(row, await readOwnBudgets(db, row.id), mayConfigure)

  app.post(
    '/v1/instances',
    {
      config: { access: 'org', event: 'instance.create', idempotency: 'transaction', stores: () => true },
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
      const { organizationId } = request.caller
      await requireHostRoom(deps.hostDisk)
      await requireAllowed(db, organizationId, request.body.resources, deps.resources)
      const row = newInstance(request.body, { organizationId, sandboxDriver, minOpenclawVersion })
      const { budgets } = request.body
      // Only overrides can be at odds with the isolation of the organization.
      const isolation = row.isolation ?? (row.openclawConfig ? await isolationOf(db, organizationId) : 'one_room')
      requireIsolation(isolation, row.openclawConfig, hasTwoRooms)
      let created: Row | undefined
      const create = async (tx: Db) => {
        const inserted = await createInstance(tx, vault, row, { hasBilling }).catch((error: unknown) => {
          if (!(error instanceof ExternalIdTaken && request.body.if_exists === 'return')) throw error
          reply.code(200)
          return error.instance
        })
        if (inserted.id === row.id) created = inserted
        if (created && budgets) await setBudgets(tx, { organizationId, scope: 'instance', id: row.id }, budgets)
        return showWith(inserted, created && !budgets ? [] : await readOwnBudgets(tx, inserted.id))
      }
      const body = await idempotent(deps, request, reply.code(201), create, { isOneStatement: !budgets })
      if (created) queue.enqueue(created) // after the commit: a worker must find the row
      const waitMs = request.query.wait * 1000
      if (waitMs === 0) return reply.send(body)
      const found = created ?? (await getInstance(db, organizationId, body.id))
      return reply.send(await show((await waitUntilSettled(db, found, { waitMs, signal: untilLeft(reply) })).row))
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
        read: (atMost, position) => listInstances(db, caller.organizationId, { ...filter, limit: atMost, position }),
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
      const shown = await show(await getInstance(db, caller.organizationId, params.instance_id), mayConfigure)
      return mayConfigure ? shown : { ...shown, instructions: null, openclaw_config: null }
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
          'it cannot reach it without another call, or after `timeout` seconds. `status` in the response tells ' +
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
      config: { access: 'configure', event: 'instance.update', stores: storesMore },
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
      if (caller.permissions !== null) requireNoneOfOrganization(body)
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
      if (terminated) queue.enqueue(terminated)
      return reply.code(204).send(null)
    },
  )

  app.post(
    '/v1/instances/:instance_id/restart',
    {
      config: { access: 'org', event: 'instance.restart' },
      schema: {
        operationId: 'restartInstance',
        summary: 'Restart an instance',
        description:
          'Ends the agent of a `running` instance, gives its turns 10 seconds to finish, and starts it again with ' +
          'its files and sessions. Returns at once, with an instance that is `provisioning`; with `wait`, the call ' +
          'waits until it runs. One that starts already is returned as it is.',
        tags: ['instances'],
        params: InstanceParams,
        querystring: WaitQuery,
        body: NoBody,
        response: { 200: shownAs(Instance, startingInstance), ...failures(404, 409) },
      },
    },
    async ({ caller, params, query }, reply) => {
      await requireStartableInstance(caller.organizationId, params.instance_id)
      const requested = await changeIntent(db, caller.organizationId, params.instance_id, 'restart')
      forgetGateway(caller.organizationId, params.instance_id)
      queue.enqueue(requested)
      const until = { waitMs: query.wait * 1000, signal: untilLeft(reply) }
      return show((await waitUntilSettled(db, requested, until)).row)
    },
  )

  for (const action of ['start', 'stop'] as const) {
    const { answers, ...words } = actions[action]
    app.post(
      `/v1/instances/:instance_id/${action}`,
      {
        config: { access: 'org', event: `instance.${action}`, frees: action === 'stop' },
        schema: {
          operationId: `${action}Instance`,
          tags: ['instances'],
          ...words,
          params: InstanceParams,
          body: NoBody,
          response: { ...answers, ...failures(404, 409) },
        },
      },
      async ({ caller, params }, reply) => {
        if (action === 'start') await requireHostRoom(deps.hostDisk)
        if (action === 'start') await requireStartableInstance(caller.organizationId, params.instance_id)
        const requested = await changeIntent(db, caller.organizationId, params.instance_id, action)
        forgetGateway(caller.organizationId, params.instance_id)
        queue.enqueue(requested)
        const until = { waitMs: settleTimeoutMs, signal: untilLeft(reply) }
        const { row, settled } = await waitUntilSettled(db, requested, until)
        return reply.code(settled ? 200 : 202).send(await show(row))
      },
    )
  }
}
