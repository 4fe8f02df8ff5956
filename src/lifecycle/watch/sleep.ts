import { sql } from 'drizzle-orm'
import type { Instance } from '#database/schema.ts'
import { readRegionState } from '#instances/region-states.ts'
import { isIn } from '#instances/regions.ts'
import { unsealToken } from '#instances/row.ts'
import { wakeForCron } from '#instances/sleep.ts'
import type { LifecycleDeps } from '#lifecycle/attempt/reconcile.ts'
import { nextCronRun } from '#openclaw/gateway/cron-jobs.ts'
import { connectGateway } from '#openclaw/gateway/gateway.ts'
import { findWork, hasChannels } from '#openclaw/gateway/idle.ts'
import type { PeriodicTask } from '#platform/periodic.ts'
import type { Endpoint } from '#sandbox/driver.ts'

/**
 * How long before its cron has something to do an agent is started, in seconds: OpenClaw runs an agent job two minutes
 * late that was due before the start.
 */
const wakeAheadSeconds = 90
/** An agent whose cron has something to do this soon after the idle timeout is not worth a stop and a start. */
const worthwhileSeconds = 180
const askTimeoutMs = 10_000
const wakeEveryMs = 5000
const wakeTimeoutMs = 10 * 60_000

/**
 * Asks a gateway whether it may sleep. Returns when its cron next has something to do, as milliseconds since 1970 or
 * null; `busy` for a gateway that works or has a chat channel. Throws the errors of GatewayClient.
 */
export async function askWhetherIdle(
  { vault, log }: Pick<LifecycleDeps, 'vault' | 'log'>,
  row: Pick<Instance, 'id' | 'endpoint' | 'sealedToken'>,
  stop: AbortSignal,
): Promise<'busy' | { nextRunMs: number | null }> {
  // A worker that ends finishes the question: a gateway that is left in the middle of it takes no turns for minutes.
  const signal = AbortSignal.timeout(askTimeoutMs)
  const gateway = await connectGateway(row.endpoint as Endpoint, unsealToken(vault, row), {
    signal,
    timeoutMs: askTimeoutMs,
  })
  try {
    if (await hasChannels(gateway)) return 'busy'
    const nextRunMs = await nextCronRun(gateway)
    stop.throwIfAborted()
    const work = await findWork(gateway)
    if (work.length === 0) return { nextRunMs }
    log.debug({ instanceId: row.id, work }, 'an agent does not sleep: it works')
    return 'busy'
  } finally {
    gateway.close()
  }
}

/** The time to start a sleeping agent for its cron, and whether it is far enough away to sleep until then, in SQL. */
export function wakeTimes(nextRunMs: number | null, idleSeconds: number) {
  const nextRun = sql`to_timestamp(${nextRunMs}::double precision / 1000)`
  return {
    wakesAt: nextRunMs === null ? null : sql`${nextRun} - make_interval(secs => ${wakeAheadSeconds})`,
    isFar:
      nextRunMs === null
        ? undefined
        : sql`${nextRun} > now() + make_interval(secs => ${idleSeconds + worthwhileSeconds})`,
  }
}

/** The periodic task that starts the sleeping agents of a region for their cron; none while the region is drained. */
export const wakeTask = (deps: LifecycleDeps, isFirst: () => boolean): PeriodicTask => ({
  name: 'wake_sleeping',
  everyMs: wakeEveryMs,
  timeoutMs: wakeTimeoutMs,
  async run(signal) {
    if (!isFirst() || (await readRegionState(deps.db, deps.region)) === 'drained') return
    await wakeForCron(deps, isIn(deps), signal)
  },
})
