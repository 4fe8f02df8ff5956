import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import { and, eq } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { events } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import type { EventType } from '#history/event-types.ts'
import { keptDays } from '#history/retention.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import { toCallerError } from '#instances/gateway/errors.ts'
import type { Regions } from '#instances/regions.ts'
import { getInstance } from '#instances/row.ts'
import { toMicroseconds } from '#platform/timestamps.ts'
import { DateTime, Nullable } from '#platform/typebox.ts'

export interface MetricsDeps {
  db: Db
  regions: Regions
}

const measureTimeoutMs = 20_000

const Metrics = Type.Object(
  {
    since: Nullable(DateTime('When the gateway that runs was started, in UTC; null when none runs.')),
    memory_bytes: Nullable(Type.Integer({ description: 'The memory of all processes of the agent.' })),
    memory_limit_bytes: Nullable(
      Type.Integer({ description: 'The memory that they may use together; null where nothing limits it.' }),
    ),
    cpu_seconds: Nullable(
      Type.Number({
        description:
          'The processor time of the processes that run, and of those that they have waited for. The difference of ' +
          'two calls, divided by the seconds between them, is the number of processors in use.',
      }),
    ),
    processes: Nullable(Type.Integer({ description: 'The number of its processes.' })),
    disk_bytes: Nullable(
      Type.Integer({
        description: 'The size of its files, which may be a minute old. Docker reports it while it runs.',
      }),
    ),
    restarts: Type.Integer({
      description: `How often the gateway ended by itself or hung, and was started again, in the last ${keptDays} days.`,
    }),
  },
  {
    $id: 'Metrics',
    examples: [
      {
        since: '2026-02-14T16:00:09.379000+00:00',
        memory_bytes: 911_212_544,
        memory_limit_bytes: 2_147_483_648,
        cpu_seconds: 93.4,
        processes: 4,
        disk_bytes: 45_088_768,
        restarts: 0,
      },
    ],
  },
)

const gatewayEnded: EventType = 'instance.gateway_ended'

const countRestarts = (db: Db, instanceId: string): Promise<number> =>
  db.$count(events, and(eq(events.instanceId, instanceId), eq(events.type, gatewayEnded)))

/** The routes of agents' resource use. */
export const metricsRoutes: FastifyPluginAsyncTypebox<MetricsDeps> = async (app, { db, regions }) => {
  app.get(
    '/v1/instances/:instance_id/metrics',
    {
      config: { access: 'read' },
      schema: {
        operationId: 'readMetrics',
        summary: 'Read what an agent uses',
        description: 'The memory, processor time and disk of the agent now. Null stands for what cannot be known.',
        tags: ['instances'],
        params: InstanceParams,
        response: { 200: Metrics, ...failures(404, 502, 504) },
      },
    },
    async ({ caller, params }) => {
      const row = await getInstance(db, caller.organizationId, params.instance_id)
      const { id } = row
      const signal = AbortSignal.timeout(measureTimeoutMs)
      const measured = regions
        .of(row)
        .sandboxes.measure(id, signal)
        .catch((cause: unknown) => {
          throw signal.aborted ? new AppError('gateway_timeout', texts.filesTooSlow, { cause }) : toCallerError(cause)
        })
      const [usage, restarts] = await Promise.all([measured, countRestarts(db, id)])
      return {
        since: usage.since && toMicroseconds(usage.since),
        memory_bytes: usage.memoryBytes,
        memory_limit_bytes: usage.memoryLimitBytes,
        cpu_seconds: usage.cpuSeconds,
        processes: usage.processes,
        disk_bytes: usage.diskBytes,
        restarts,
      }
    },
  )
}
