import { randomBytes } from 'node:crypto'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { FastifyReply } from 'fastify'
import type { Instance as Row } from '../database/schema.ts'
import { parseOverrides } from '../openclaw/overrides.ts'
import { defaultRelease, knownReleases } from '../openclaw/releases.ts'
import type { Due } from '../platform/bell.ts'
import { AppError } from '../platform/errors.ts'
import { ErrorBody } from '../platform/http-errors.ts'
import { newId } from '../platform/ids.ts'
import { texts } from '../platform/texts.ts'
import type { ChangeDeps } from './change.ts'
import type { FindGateway, FindHead } from './lookup.ts'
import { patchInstance } from './patch.ts'
import { CreateInstance, Instance, InstanceStatus, PatchInstance, toInstance, toInstanceStatus } from './schemas.ts'
import { waitUntilSettled } from './settled.ts'
import { changeIntent, createInstance, getInstance, listInstances, openConfig, terminateInstance } from './store.ts'

export interface InstanceDeps extends ChangeDeps {
  findHead: FindHead
  /** Called with what stops being sent turns, before that is answered. */
  forgetGateway: FindGateway['forget']
  /** How clients reach the API; asked at each answer, because a port that the system chose is known late. */
  publicUrl(): string
  /** The driver new instances are created on. */
  sandboxDriver: string
}

// A malformed id is an unknown one: 404.
const ById = Type.Object({ instance_id: Type.String() })
const failures = { '4xx': ErrorBody, '5xx': ErrorBody }
// Fastify hands an absent body over as null.
const NoBody = Type.Union([Type.Null(), Type.Object({}, { additionalProperties: false })])

/** Fires when the client has gone before its answer was out. */
function whenLeft(reply: FastifyReply): AbortSignal {
  const left = new AbortController()
  reply.raw.once('close', () => left.abort())
  return left.signal
}

/** The eight endpoints of instances. They record intent and ring; workers do the work. */
export const instanceRoutes: FastifyPluginAsyncTypebox<InstanceDeps> = async (app, deps) => {
  const { db, vault, bell, findHead, forgetGateway, publicUrl, sandboxDriver } = deps
  const closing = new AbortController()
  app.addHook('preClose', async () => closing.abort())

  const show = (row: Row) => toInstance({ row, openclawConfig: openConfig(vault, row) }, publicUrl())
  const ringAfter = (reply: FastifyReply, row: Due) => reply.raw.once('finish', () => bell.ring(row)) // the sweep covers a lost bell

  app.post(
    '/v1/instances',
    {
      config: { access: 'org' },
      schema: { tags: ['instances'], body: CreateInstance, response: { 201: Instance, ...failures } },
    },
    async ({ body, caller }, reply) => {
      const openclawVersion = body.openclaw_version ?? defaultRelease
      if (!knownReleases().includes(openclawVersion)) {
        throw new AppError('invalid', texts.unknownVersion(openclawVersion, knownReleases()))
      }
      if (body.openclaw_config) parseOverrides(body.openclaw_config)
      const row = await createInstance(db, vault, {
        id: newId(),
        organizationId: caller.organizationId,
        name: body.name,
        modelProvider: body.model_provider ?? 'anthropic',
        sandboxDriver,
        openclawVersion,
        openclawConfig: body.openclaw_config ?? null,
        gatewayToken: randomBytes(32).toString('hex'),
      })
      ringAfter(reply, row)
      return reply.code(201).send(show(row))
    },
  )

  app.get(
    '/v1/instances',
    {
      config: { access: 'org' },
      schema: { tags: ['instances'], response: { 200: Type.Array(Instance), ...failures } },
    },
    async ({ caller }) => (await listInstances(db, caller.organizationId)).map(show),
  )

  app.get(
    '/v1/instances/:instance_id',
    {
      config: { access: 'read' },
      schema: { tags: ['instances'], params: ById, response: { 200: Instance, ...failures } },
    },
    async ({ caller, params }) => show(await getInstance(db, caller.organizationId, params.instance_id)),
  )

  app.get(
    '/v1/instances/:instance_id/status',
    {
      config: { access: 'read' },
      schema: { tags: ['instances'], params: ById, response: { 200: InstanceStatus, ...failures } },
    },
    async ({ caller, params }) =>
      toInstanceStatus(await findHead(caller.organizationId, params.instance_id), publicUrl()),
  )

  app.patch(
    '/v1/instances/:instance_id',
    {
      config: { access: 'configure' },
      schema: { tags: ['instances'], params: ById, body: PatchInstance, response: { 200: Instance, ...failures } },
    },
    async ({ body, caller, params }) =>
      show(await patchInstance(deps, caller.organizationId, params.instance_id, body)),
  )

  app.delete(
    '/v1/instances/:instance_id',
    {
      config: { access: 'org' },
      schema: { tags: ['instances'], params: ById, response: { 204: Type.Null(), ...failures } },
    },
    async ({ caller, params }, reply) => {
      const due = await terminateInstance(db, caller.organizationId, params.instance_id)
      forgetGateway(caller.organizationId, params.instance_id)
      if (due) ringAfter(reply, due)
      return reply.code(204).send(null)
    },
  )

  for (const action of ['start', 'stop'] as const) {
    app.post(
      `/v1/instances/:instance_id/${action}`,
      {
        config: { access: 'org' },
        schema: {
          tags: ['instances'],
          params: ById,
          body: NoBody,
          response: { 200: Instance, 202: Instance, ...failures },
        },
      },
      async ({ caller, params }, reply) => {
        const written = await changeIntent(db, caller.organizationId, params.instance_id, action)
        forgetGateway(caller.organizationId, params.instance_id)
        bell.ring(written)
        const { row, settled } = await waitUntilSettled(db, written, AbortSignal.any([whenLeft(reply), closing.signal]))
        return reply.code(settled ? 200 : 202).send(show(row))
      },
    )
  }
}
