import pTimeout from 'p-timeout'
import { isPlaceIn } from '#instances/claim.ts'
import { type PeriodicTask, runPeriodically } from '#platform/periodic.ts'
import { createClaims } from './claims.ts'
import { createDriftDetector } from './drift.ts'
import { firewallTask } from './firewall.ts'
import type { ReconcileQueue } from './queue.ts'
import type { LifecycleDeps, WorkerDeps } from './reconcile.ts'
import { findWaiting } from './sweep.ts'
import { useTasks } from './use-watch.ts'

/** How often a worker sweeps and detects drift, in ms: also how long a lost job or a dead gateway goes unnoticed. */
export interface Intervals {
  sweepEveryMs: number
  driftEveryMs: number
}

export const defaultIntervals: Intervals = { sweepEveryMs: 5000, driftEveryMs: 5000 }
const sweepTimeoutMs = 60_000
/** A platform that hangs for longer is asked again in the next run. */
const driftTimeoutMs = 60_000
/** How long running attempts may take to end before they are aborted. Another worker continues the aborted ones. */
const drainMs = 20_000
const tasksEndMs = 5000

/** Enqueues while rows wait, and warns once of each region whose rows need another worker. */
function sweepTask({ db, regions, queue, log }: WorkerDeps, everyMs: number): PeriodicTask {
  const reported = new Set<string>()
  return {
    name: 'the sweep',
    everyMs,
    timeoutMs: sweepTimeoutMs,
    async run() {
      const waiting = await findWaiting(db)
      const elsewhere = waiting.filter((place) => !isPlaceIn(regions, place))
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

/** The periodic work of every worker. docs/operations.md shows it. */
export const reconcileTasks = (
  deps: WorkerDeps,
  { sweepEveryMs, driftEveryMs }: Intervals,
  detectors: ReadonlyMap<LifecycleDeps, PeriodicTask['run']>,
): PeriodicTask[] => [
  sweepTask(deps, sweepEveryMs),
  ...[...detectors].flatMap(([region, detectDrift]) => regionTasks(region, driftEveryMs, detectDrift)),
]

/** The periodic work in a region. */
const regionTasks = (deps: LifecycleDeps, driftEveryMs: number, detectDrift: PeriodicTask['run']): PeriodicTask[] => [
  { name: 'the detection of drift', everyMs: driftEveryMs, timeoutMs: driftTimeoutMs, run: detectDrift },
  firewallTask(deps),
  ...useTasks(deps),
]

/**
 * Works on due rows of its regions until it is stopped, `slots` at once. Detects drift once before it claims rows; from
 * then on the sweep, the detection of drift and `others` run periodically. The next worker finds all that a killed one
 * leaves undone.
 */
export async function startWorker(
  deps: WorkerDeps,
  queue: ReconcileQueue,
  slots: number,
  intervals: Intervals,
  starting: AbortSignal,
  others: readonly PeriodicTask[],
) {
  const { log } = deps
  const stopping = new AbortController()
  const detectors = new Map(deps.regions.map((region) => [region, createDriftDetector(region)]))

  // A failure is not logged: the periodic run, which follows at once, logs one that lasts.
  const first = AbortSignal.any([starting, AbortSignal.timeout(driftTimeoutMs)])
  await Promise.all(Array.from(detectors.values(), (detectDrift) => detectDrift(first).catch(() => {})))
  starting.throwIfAborted()
  const claims = createClaims(deps, slots)
  const jobs = queue.work(claims.take, slots)
  const tasks = reconcileTasks(deps, intervals, detectors)
  const periodic = runPeriodically([...tasks, ...others], stopping.signal, log)

  return {
    async stop(): Promise<void> {
      stopping.abort()
      await Promise.all([claims.stop(drainMs), jobs.stop()])
      await pTimeout(periodic, { milliseconds: tasksEndMs, message: false })
    },
  }
}
