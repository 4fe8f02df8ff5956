import { randomBytes } from 'node:crypto'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { Instance as Row } from '#database/schema.ts'
import { clientLeft } from '#http/client-left.ts'
import { IdempotencyHeaders, idempotent } from '#http/idempotency.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import { linkNext, positionOf } from '#http/paging.ts'
import { NoBody } from '#http/validation.ts'
import { createInstance } from '#instances/create.ts'
import type { FindSummary, InstanceSummary, RunningGateways } from '#instances/find.ts'
import type { ChangeDeps } from '#instances/gateway/change.ts'
import { changeIntent, terminateInstance } from '#instances/intent.ts'
import type { InstanceRef } from '#instances/queue.ts'
import { getInstance, unsealConfig } from '#instances/row.ts'
import { canStillReach } from '#instances/status.ts'
import { readUntil, waitUntilSettled } from '#instances/wait.ts'
import { parseOverrides } from '#openclaw/overrides.ts'
import { defaultRelease, knownReleases } from '#openclaw/releases.ts'
import { AppError } from '#platform/errors.ts'
import { isId, newId } from '#platform/ids.ts'
import { texts } from '#platform/texts.ts'
import { listInstances } from './list.ts'
import { patchInstance } from './patch.ts'
import {
  CreateInstance,
  Instance,
  InstanceStatus,
  ListInstances,
  PatchInstance,
  toInstance,
  toInstanceStatus,
  WaitForStatus,
} from './schemas.ts'

export interface InstanceDeps extends ChangeDeps {
  findSummary: FindSummary
  /** Called with what stops being sent turns, before that is answered. */
  forgetGateway: RunningGateways['forget']
  /** How clients reach the API; asked at each answer, because a port that the system chose is known late. */
  publicUrl(): string
  /** The driver new instances are created on. */
  sandboxDriver: string
}

const intentTexts = {
  start: {
    summary: 'Start an instance',
    description:
      'Starts a `stopped` instance, or tries one in `error` again. Waits up to 60 seconds for the end, which may be `error`; a 202 means that it goes on.',
  },
  stop: {
    summary: 'Stop an instance',
    description:
      'Stops a `running` instance and keeps its files and sessions. Messages are refused from now on. Waits up to 60 seconds for the end; a 202 means that it goes on.',
  },
}

/** The eight endpoints of instances. They record intent and ring; workers do the work. */
export const instanceRoutes: FastifyPluginAsyncTypebox<InstanceDeps> = async (app, deps) => {
  const { db, vault, queue, findSummary, forgetGateway, publicUrl, sandboxDriver } = deps
  const closing = new AbortController()
  app.addHook('preClose', async () => closing.abort())

  const show = (row: Row) => toInstance({ row, openclawConfig: unsealConfig(vault, row) }, publicUrl())

  app.post(
    '/v1/instances',
    {
      config: { access: 'org', event: 'instance.create' },
      schema: {
        operationId: 'createInstance',
        summary: 'Create an instance',
        description:
          'Answers at once with an instance that is `provisioning`; it is `running` once its agent takes messages. Your organization must have a key for the model provider, and a free place under its plan.',
        tags: ['instances'],
        headers: IdempotencyHeaders,
        body: CreateInstance,
        response: { 201: Instance, ...failures(400, 402, 409) },
      },
    },
    async (request, reply) => {
      const { body, caller } = request
      const openclawVersion = body.openclaw_version ?? defaultRelease
      if (!knownReleases().includes(openclawVersion)) {
        throw new AppError('invalid', texts.unknownVersion(openclawVersion, knownReleases()))
      }
      if (body.openclaw_config) parseOverrides(body.openclaw_config)
      let created: InstanceRef | undefined
      const answer = await idempotent(
        deps,
        request,
        reply,
        async (tx) => {
          const row = await createInstance(tx, vault, {
            id: newId(),
            organizationId: caller.organizationId,
            name: body.name,
            metadata: body.metadata ?? {},
            modelProvider: body.model_provider ?? 'anthropic',
            sandboxDriver,
            openclawVersion,
            openclawConfig: body.openclaw_config ?? null,
            gatewayToken: randomBytes(32).toString('hex'),
          })
          created = row
          return show(row)
        },
        { isOneStatement: true },
      )
      if (created) queue.enqueue(created) // after the commit: a worker must find the row
      return reply.code(201).send(answer)
    },
  )

  app.get(
    '/v1/instances',
    {
      config: { access: 'org' },
      schema: {
        operationId: 'listInstances',
        summary: 'List instances',
        description:
          'Newest first; terminated ones only when asked for by `status`. With `limit`, the header `Link` names the next page as long as there is one.',
        tags: ['instances'],
        querystring: ListInstances,
        response: { 200: Type.Array(Instance), ...failures(400) },
      },
    },
    async ({ caller, query: { cursor, ...filter } }, reply) => {
      const position = positionOf(cursor, isId)
      const { rows, next } = await listInstances(db, caller.organizationId, { ...filter, position })
      if (next) linkNext(reply, publicUrl(), next)
      return rows.map(show)
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
          'A terminated instance can be read for 30 days. `openclaw_config` may hold tokens: a scoped key without `configure` gets null.',
        tags: ['instances'],
        params: InstanceParams,
        response: { 200: Instance, ...failures(404) },
      },
    },
    async ({ caller, params }) => {
      const shown = show(await getInstance(db, caller.organizationId, params.instance_id))
      const mayConfigure = caller.permissions === null || caller.permissions.includes('configure')
      return mayConfigure ? shown : { ...shown, openclaw_config: null }
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
          'Cheap enough to be polled. With `wait` the answer comes as soon as the instance has that status, as soon as it will not get there by itself, or after `timeout` seconds: read `status` to see which.',
        tags: ['instances'],
        params: InstanceParams,
        querystring: WaitForStatus,
        response: { 200: InstanceStatus, ...failures(404) },
      },
    },
    async ({ caller, params, query: { wait, timeout } }, reply) => {
      const read = () => findSummary(caller.organizationId, params.instance_id)
      const head = await read()
      if (wait === undefined) return toInstanceStatus(head, publicUrl())
      const signal = AbortSignal.any([clientLeft(reply), closing.signal])
      const isOver = (latest: InstanceSummary) => !canStillReach(wait, latest)
      return toInstanceStatus(await readUntil(head, isOver, read, { waitMs: timeout * 1000, signal }), publicUrl())
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
          'Changes what is sent and leaves the rest. `openclaw_config` and `metadata` replace what was stored. A running agent has the new configuration when this is answered, or it is a 400 in OpenClaw’s words and nothing has changed.',
        tags: ['instances'],
        params: InstanceParams,
        body: PatchInstance,
        response: { 200: Instance, ...failures(400, 404, 409, 502, 504, 507) },
      },
    },
    async ({ body, caller, params }) =>
      show(await patchInstance(deps, caller.organizationId, params.instance_id, body)),
  )

  app.delete(
    '/v1/instances/:instance_id',
    {
      config: { access: 'org', event: 'instance.delete' },
      schema: {
        operationId: 'deleteInstance',
        summary: 'Delete an instance',
        description:
          'Destroys the agent with its files, sessions and settings, for good, and frees its place under the plan at once. Deleting it again changes nothing.',
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

  for (const action of ['start', 'stop'] as const) {
    app.post(
      `/v1/instances/:instance_id/${action}`,
      {
        config: { access: 'org', event: `instance.${action}` },
        schema: {
          operationId: `${action}Instance`,
          tags: ['instances'],
          ...intentTexts[action],
          params: InstanceParams,
          body: NoBody,
          response: { 200: Instance, 202: Instance, ...failures(404, 409) },
        },
      },
      async ({ caller, params }, reply) => {
        const written = await changeIntent(db, caller.organizationId, params.instance_id, action)
        forgetGateway(caller.organizationId, params.instance_id)
        queue.enqueue(written)
        const { row, settled } = await waitUntilSettled(
          db,
          written,
          AbortSignal.any([clientLeft(reply), closing.signal]),
        )
        return reply.code(settled ? 200 : 202).send(show(row))
      },
    )
  }
}
