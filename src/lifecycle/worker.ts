import type { InstanceQueue } from '#instances/queue.ts'
import { atMost } from '#platform/deadline.ts'
import { type PeriodicTask, runPeriodically } from '#platform/periodic.ts'
import { createOrganizationConcurrency } from './concurrency.ts'
import { createDriftDetector } from './drift.ts'
import type { ReconcileQueue } from './queue.ts'
import { type LifecycleDeps, reconcileInstance } from './reconcile.ts'
import { dueElsewhere, sweep } from './sweep.ts'

/** How often a worker looks at everything, in ms: also how long a lost job, or a death, goes unnoticed. */
export interface Intervals {
  sweepEveryMs: number
  driftEveryMs: number
}

export const defaultIntervals: Intervals = { sweepEveryMs: 5000, driftEveryMs: 5000 }
const sweepTimeoutMs = 60_000
/** A platform that hangs for longer is asked again in the next run. */
const driftTimeoutMs = 60_000
/** What reconciles in flight get to finish before they are aborted; they go on where they were at the next start. */
const drainMs = 20_000
/** More due rows than one sweep can enqueue: the next sweep does not wait for the usual time. */
const backlog = 64
const backlogSweepMs = 500
const tasksEndMs = 5000

/** Enqueues due rows, and warns once of each driver whose due rows need another worker. */
function sweeping({ db, sandboxes, log }: LifecycleDeps, everyMs: number, queueOf: () => InstanceQueue): PeriodicTask {
  let isBacklogged = false
  const reported = new Set<string>()
  return {
    name: 'the sweep',
    everyMs: () => (isBacklogged ? Math.min(backlogSweepMs, everyMs) : everyMs),
    timeoutMs: sweepTimeoutMs,
    async run() {
      isBacklogged = (await sweep(db, sandboxes.name, queueOf())) >= backlog
      for (const { sandboxDriver, rows } of await dueElsewhere(db, sandboxes.name)) {
        if (reported.has(sandboxDriver)) continue
        reported.add(sandboxDriver)
        log.warn({ sandboxDriver, rows }, `due instances wait for a worker with SANDBOX_DRIVER=${sandboxDriver}`)
      }
    },
  }
}

/**
 * Works on due rows until it is stopped: first it looks for drift once, then it takes jobs, and runs the sweep, the look
 * for drift and `others` periodically. A worker that is killed leaves nothing undone that the next one does not find.
 */
export async function startWorker(
  deps: LifecycleDeps,
  queue: ReconcileQueue,
  concurrency: number,
  { sweepEveryMs, driftEveryMs }: Intervals,
  starting: AbortSignal,
  others: readonly PeriodicTask[],
) {
  const { log } = deps
  const stopping = new AbortController()
  const findDrift = createDriftDetector(deps)

  await findDrift(AbortSignal.any([starting, AbortSignal.timeout(driftTimeoutMs)])).catch((error: unknown) => {
    log.warn({ err: error }, 'the first look for drift failed; the next one follows')
  })
  starting.throwIfAborted()
  const lanes = createOrganizationConcurrency(concurrency, queue)
  const working = await queue.work(
    (due, stop) => lanes.run(due, () => reconcileInstance(deps, due.id, stop)),
    concurrency + 1, // the one more is for the other organizations
  )
  const tasks: PeriodicTask[] = [
    sweeping(deps, sweepEveryMs, lanes.sweepQueue),
    { name: 'the look for drift', everyMs: driftEveryMs, timeoutMs: driftTimeoutMs, run: findDrift },
    ...others,
  ]
  const periodic = runPeriodically(tasks, stopping.signal, log)

  return {
    async stop(): Promise<void> {
      stopping.abort()
      await working.stop(drainMs)
      await atMost(tasksEndMs, periodic)
    },
  }
}
