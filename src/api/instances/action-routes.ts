import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyReply } from 'fastify'
import type { Db } from '#database/client.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { shownAs } from '#http/examples.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import { NoBody } from '#http/validation.ts'
import type { FindSummary, RunningGateways } from '#instances/find.ts'
import { changeIntent } from '#instances/intent.ts'
import type { InstanceQueue } from '#instances/queue.ts'
import { readRegionState } from '#instances/region-states.ts'
import type { Regions } from '#instances/regions.ts'
import { getInstance } from '#instances/row.ts'
import { settleTimeoutMs, waitUntilSettled } from '#instances/wait.ts'
import { type HostDisk, requireHostRoom } from '#platform/host-disk.ts'
import { requireStartable } from './create.ts'
import { WaitQuery } from './requests.ts'
import { Instance, startingInstance, stoppedInstance, stoppingInstance } from './schemas.ts'
import type { Show } from './show.ts'

export interface ActionDeps {
  db: Db
  regions: Regions
  queue: InstanceQueue
  findSummary: FindSummary
  hostDisk: HostDisk
  /** Call it before the response to a stop or a delete: messages are refused from then on. */
  forgetGateway: RunningGateways['forget']
  /** The oldest version of OpenClaw that agents may start with. */
  minOpenclawVersion: string
  show: Show
  /** Aborted when the client has left or the server closes. */
  untilLeft(reply: FastifyReply): AbortSignal
}

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
      'Stops a `running` or sleeping instance and keeps its files and sessions. From this call on, messages are refused. Waits ' +
      'up to 60 seconds for the end of the agent. A 202 means that the stop continues.',
    answers: { 200: shownAs(Instance, stoppedInstance), 202: shownAs(Instance, stoppingInstance) },
  },
}

/**
 * Throws AppError for an instance that may not be started now: not_found, `host_disk_full`, `release_refused`,
 * `region_closed`.
 */
export const createRequireStart =
  ({
    db,
    regions,
    findSummary,
    hostDisk,
    minOpenclawVersion,
  }: Omit<ActionDeps, 'queue' | 'forgetGateway' | 'show' | 'untilLeft'>) =>
  async (organizationId: string, id: string): Promise<void> => {
    await requireHostRoom(hostDisk)
    requireStartable((await findSummary(organizationId, id)).openclawVersion, minOpenclawVersion)
    const { region } = regions.of(await getInstance(db, organizationId, id))
    if ((await readRegionState(db, region)) === 'drained')
      throw new AppError('region_closed', texts.regionStartsNone(region))
  }

/** The routes that restart, start and stop an instance. They wait for the worker's work. */
export const actionRoutes: FastifyPluginAsyncTypebox<ActionDeps> = async (app, deps) => {
  const { db, queue, findSummary, forgetGateway, minOpenclawVersion, show, untilLeft } = deps
  const requireStart = createRequireStart(deps)

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
      const { openclawVersion } = await findSummary(caller.organizationId, params.instance_id)
      requireStartable(openclawVersion, minOpenclawVersion)
      const requested = await changeIntent(db, caller.organizationId, params.instance_id, 'restart')
      forgetGateway(caller.organizationId, params.instance_id)
      queue.enqueue()
      const until = { waitMs: query.wait * 1000, signal: untilLeft(reply) }
      return show((await waitUntilSettled(db, requested, until)).row)
    },
  )

  for (const action of ['start', 'stop'] as const) {
    const { answers, ...words } = actions[action]
    app.post(
      `/v1/instances/:instance_id/${action}`,
      {
        config: { access: 'org', event: `instance.${action}` },
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
        if (action === 'start') await requireStart(caller.organizationId, params.instance_id)
        const requested = await changeIntent(db, caller.organizationId, params.instance_id, action)
        forgetGateway(caller.organizationId, params.instance_id)
        queue.enqueue()
        const until = { waitMs: settleTimeoutMs, signal: untilLeft(reply) }
        const { row, settled } = await waitUntilSettled(db, requested, until)
        return reply.code(settled ? 200 : 202).send(await show(row))
      },
    )
  }
}
