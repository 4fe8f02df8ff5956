import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { Db } from '#database/client.ts'
import { idempotent } from '#http/idempotency.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import { PageQuery, positionOf, sendPage } from '#http/paging.ts'
import type { AskGateway } from '#instances/gateway/ask.ts'
import { getInstance } from '#instances/row.ts'
import { isId } from '#platform/ids.ts'
import type { Vault } from '#platform/secrets.ts'
import {
  askForRun,
  createSchedule,
  deleteSchedule,
  getSchedule,
  listSchedules,
  patchSchedule,
  type Schedule as Row,
} from '#schedules/store.ts'
import { cronJobRoutes } from './cron-jobs.ts'
import { CreateSchedule, PatchSchedule, Schedule, ScheduleParams, toSchedule } from './schemas.ts'

export interface ScheduleDeps {
  db: Db
  vault: Vault
  askGateway: AskGateway
  publicUrl(): string
}

/** The routes of schedules. A key needs `configure`: keys for some sessions do not have it. */
export const scheduleRoutes: FastifyPluginAsyncTypebox<ScheduleDeps> = async (app, deps) => {
  const { db, vault, publicUrl } = deps
  const show = (row: Row) => toSchedule(vault, row)

  app.post(
    '/v1/instances/:instance_id/schedules',
    {
      config: { access: 'configure', event: 'schedule.create', idempotency: 'transaction' },
      schema: {
        operationId: 'createSchedule',
        summary: 'Create a schedule',
        description:
          'Sends a message to the agent at times of `cron`, or once `at` a time, as a background turn. It wakes an agent ' +
          'that sleeps. Each run begins once, also when processes of Chowder are killed.',
        tags: ['schedules'],
        params: InstanceParams,
        body: CreateSchedule,
        response: { 201: Schedule, ...failures(400, 404, 409) },
      },
    },
    async (request, reply) => {
      const { caller, params, body } = request
      const instance = await getInstance(db, caller.organizationId, params.instance_id)
      const created = await idempotent(deps, request, reply.code(201), async (tx) =>
        show(await createSchedule(tx, vault, instance, body)),
      )
      return reply.send(created)
    },
  )

  app.get(
    '/v1/instances/:instance_id/schedules',
    {
      config: { access: 'configure', inFlight: 'lists' },
      schema: {
        operationId: 'listSchedules',
        summary: 'List the schedules of an instance',
        description: 'Newest first.',
        tags: ['schedules'],
        params: InstanceParams,
        querystring: PageQuery,
        response: { 200: Type.Array(Schedule), ...failures(400, 404) },
      },
    },
    async ({ caller, params, query: { limit, cursor } }, reply) => {
      const instance = await getInstance(db, caller.organizationId, params.instance_id)
      await sendPage(reply, {
        limit,
        position: positionOf(cursor, isId),
        item: Schedule,
        read: (atMost, position) => listSchedules(db, instance, { limit: atMost, position }),
        show,
        publicUrl,
      })
      return reply
    },
  )

  app.get(
    '/v1/instances/:instance_id/schedules/:schedule_id',
    {
      config: { access: 'configure' },
      schema: {
        operationId: 'getSchedule',
        summary: 'Read a schedule',
        description: 'Has its next five times, and its last 20 runs.',
        tags: ['schedules'],
        params: ScheduleParams,
        response: { 200: Schedule, ...failures(404) },
      },
    },
    async ({ caller, params }) => {
      const { id } = await getInstance(db, caller.organizationId, params.instance_id)
      return show(await getSchedule(db, id, params.schedule_id))
    },
  )

  app.patch(
    '/v1/instances/:instance_id/schedules/:schedule_id',
    {
      config: { access: 'configure', event: 'schedule.update' },
      schema: {
        operationId: 'updateSchedule',
        summary: 'Change or pause a schedule',
        description: 'Changes what is sent. Other times, and the end of a pause, begin with the next time after now.',
        tags: ['schedules'],
        params: ScheduleParams,
        body: PatchSchedule,
        response: { 200: Schedule, ...failures(400, 404) },
      },
    },
    async ({ body, caller, params }) => {
      const { id } = await getInstance(db, caller.organizationId, params.instance_id)
      return show(await patchSchedule(db, vault, id, params.schedule_id, body))
    },
  )

  app.delete(
    '/v1/instances/:instance_id/schedules/:schedule_id',
    {
      config: { access: 'configure', event: 'schedule.delete' },
      schema: {
        operationId: 'deleteSchedule',
        summary: 'Delete a schedule',
        description: 'A run that has begun goes on.',
        tags: ['schedules'],
        params: ScheduleParams,
        response: { 204: Type.Null(), ...failures(404) },
      },
    },
    async ({ caller, params }, reply) => {
      const { id } = await getInstance(db, caller.organizationId, params.instance_id)
      await deleteSchedule(db, id, params.schedule_id)
      return reply.code(204).send(null)
    },
  )

  app.post(
    '/v1/instances/:instance_id/schedules/:schedule_id/run',
    {
      config: { access: 'configure', event: 'schedule.run', idempotency: 'transaction' },
      schema: {
        operationId: 'runSchedule',
        summary: 'Run a schedule now',
        description:
          'Begins a run within a second, also of a paused schedule. `runs` then has its response. Its next times stay.',
        tags: ['schedules'],
        params: ScheduleParams,
        response: { 200: Schedule, ...failures(404, 409) },
      },
    },
    async (request, reply) => {
      const { caller, params } = request
      const { id } = await getInstance(db, caller.organizationId, params.instance_id)
      const asked = await idempotent(deps, request, reply.code(200), async (tx) =>
        show(await askForRun(tx, id, params.schedule_id)),
      )
      return reply.send(asked)
    },
  )

  await app.register(cronJobRoutes, deps)
}
