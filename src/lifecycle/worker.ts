import pTimeout from 'p-timeout'
import type { InstanceQueue } from '#instances/queue.ts'
import { type PeriodicTask, runPeriodically } from '#platform/periodic.ts'
import { createOrganizationConcurrency } from './concurrency.ts'
import { createDriftDetector } from './drift.ts'
import { firewallTask } from './firewall.ts'
import type { ReconcileQueue } from './queue.ts'
import { type LifecycleDeps, reconcileInstance, type WorkerDeps } from './reconcile.ts'
import { dueElsewhere, sweep } from './sweep.ts'
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
/** With so many due rows, more than the queue takes from one sweep, the next sweep follows sooner. */
const backlog = 64
const backlogSweepMs = 500
const tasksEndMs = 5000

/** Enqueues due rows, and warns once of each region whose due rows need another worker. */
function sweepTask({ db, regions, log }: WorkerDeps, everyMs: number, sweepQueue: () => InstanceQueue): PeriodicTask {
  let isBacklogged = false
  const reported = new Set<string>()
  return {
    name: 'the sweep',
    everyMs: () => (isBacklogged ? Math.min(backlogSweepMs, everyMs) : everyMs),
    timeoutMs: sweepTimeoutMs,
    async run() {
      isBacklogged = (await sweep(db, regions, sweepQueue())) >= backlog
      for (const { region, sandboxDriver, rows } of await dueElsewhere(db, regions)) {
        const needed =
          region === null ? `with SANDBOX_DRIVER=${sandboxDriver}` : `of the region ${region} with ${sandboxDriver}`
        if (reported.has(needed)) continue
        reported.add(needed)
        log.warn({ region, sandboxDriver, rows }, `due instances wait for a worker ${needed}`)
      }
    },
  }
}

/** The periodic work of every worker. docs/operations.md shows it. */
export const reconcileTasks = (
  deps: WorkerDeps,
  { sweepEveryMs, driftEveryMs }: Intervals,
  sweepQueue: () => InstanceQueue,
  detectors: ReadonlyMap<LifecycleDeps, PeriodicTask['run']>,
): PeriodicTask[] => [
  sweepTask(deps, sweepEveryMs, sweepQueue),
  ...[...detectors].flatMap(([region, detectDrift]) => regionTasks(region, driftEveryMs, detectDrift)),
]

/** The periodic work in a region. */
const regionTasks = (deps: LifecycleDeps, driftEveryMs: number, detectDrift: PeriodicTask['run']): PeriodicTask[] => [
  { name: 'the detection of drift', everyMs: driftEveryMs, timeoutMs: driftTimeoutMs, run: detectDrift },
  firewallTask(deps),
  ...useTasks(deps),
]

/**
 * Works on due rows of its regions until it is stopped. Detects drift once before it takes jobs; from then on the sweep, the detection
 * of drift and `others` run periodically. The next worker finds all that a killed one leaves undone.
 */
export async function startWorker(
  deps: WorkerDeps,
  queue: ReconcileQueue,
  concurrency: number,
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
  const organizations = createOrganizationConcurrency(concurrency, queue)
  const jobs = queue.work(
    (instance, stop) => organizations.run(instance, () => reconcileInstance(deps, instance.id, stop)),
    organizations.total,
  )
  const tasks = reconcileTasks(deps, intervals, organizations.sweepQueue, detectors)
  const periodic = runPeriodically([...tasks, ...others], stopping.signal, log)

  return {
    async stop(): Promise<void> {
      stopping.abort()
      await jobs.stop(drainMs)
      await pTimeout(periodic, { milliseconds: tasksEndMs, message: false })
    },
  }
}
