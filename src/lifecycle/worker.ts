import pTimeout from 'p-timeout'
import { isPlaceIn } from '#instances/claim.ts'
import type { WorkerDeps } from '#lifecycle/attempt/reconcile.ts'
import { createClaims } from '#lifecycle/queue/claims.ts'
import type { ReconcileQueue } from '#lifecycle/queue/queue.ts'
import { createShards } from '#lifecycle/queue/shards.ts'
import { findWaiting } from '#lifecycle/queue/sweep.ts'
import { createRegionWork } from '#lifecycle/watch/region-tasks.ts'
import { type PeriodicTask, runPeriodically } from '#platform/periodic.ts'

/**
 * How often a worker sweeps and detects drift, in ms. It bounds how long a lost job goes unnoticed and, in a region of
 * a few hundred instances, a dead gateway that the platform does not report.
 */
export interface Intervals {
  sweepEveryMs: number
  driftEveryMs: number
}

export const defaultIntervals: Intervals = { sweepEveryMs: 5000, driftEveryMs: 5000 }
const sweepTimeoutMs = 60_000
/** Time for running attempts to end before they are aborted. Another worker continues the aborted ones. */
const drainMs = 20_000
const tasksEndMs = 5000

/** Enqueues while rows wait, and warns once for each region and driver that needs another worker. */
export function sweepTask({ db, regions, queue, log }: WorkerDeps, everyMs: number): PeriodicTask {
  const reported = new Set<string>()
  return {
    name: 'sweep',
    everyMs,
    timeoutMs: sweepTimeoutMs,
    async run() {
      const waiting = await findWaiting(db)
      const elsewhere = waiting.filter((place) => !isPlaceIn(regions(), place))
      if (elsewhere.length < waiting.length) queue.enqueue()
      for (const { region, driver } of elsewhere) {
        const needed = region === '' ? `with SANDBOX_DRIVER=${driver}` : `of the region ${region} with ${driver}`
        if (reported.has(needed)) continue
        reported.add(needed)
        log.warn({ region: region || null, sandboxDriver: driver }, `due instances wait for a worker ${needed}`)
      }
    },
  }
}

export interface Worker {
  stop(): Promise<void>
}

/**
 * Works on due rows of its regions until it is stopped, `slots` at once. Detects drift once before it claims rows. From
 * then on the sweep and the work in each region run periodically, and in the first of all workers `maintenance` too.
 * The next worker finds all unfinished work of a killed one.
 */
export async function startWorker(
  deps: WorkerDeps,
  queue: ReconcileQueue,
  slots: number,
  intervals: Intervals,
  starting: AbortSignal,
  maintenance: readonly PeriodicTask[],
): Promise<Worker> {
  const { log } = deps
  const stopping = new AbortController()
  const shards = createShards(deps.db, deps.processId, deps.alive, deps.regions)
  const work = createRegionWork(intervals.driftEveryMs, shards, stopping.signal, log)
  await work.serve(deps.regions(), starting)
  const claims = createClaims(deps, slots, shards)
  const jobs = queue.work(claims.take, slots)
  const sweeping = sweepTask(deps, intervals.sweepEveryMs)
  const byFirst = maintenance.map((task) => ({
    ...task,
    run: async (signal: AbortSignal) => {
      if (shards.isFirst()) await task.run(signal)
    },
  }))
  const periodic = runPeriodically([sweeping, ...byFirst], stopping.signal, log)

  return {
    async stop() {
      stopping.abort()
      await Promise.all([claims.stop(drainMs), jobs.stop()])
      const ended = Promise.all([periodic, work.ended()])
      await pTimeout(ended, { milliseconds: tasksEndMs, message: false })
    },
  }
}
