import { setTimeout as sleep } from 'node:timers/promises'
import { atMost } from '#platform/deadline.ts'
import { logFirstAndRecovery } from '#platform/log.ts'
import { createOrganizationConcurrency } from './concurrency.ts'
import { createDriftDetector } from './drift.ts'
import type { ReconcileQueue } from './queue.ts'
import { type LifecycleDeps, reconcileInstance } from './reconcile.ts'
import { dueElsewhere, sweep } from './sweep.ts'

/** How often a worker looks at everything, in ms: also how long a lost bell, or a death, goes unnoticed. */
export interface Intervals {
  sweepEveryMs: number
  driftEveryMs: number
}

/** What else is done every so often while a worker runs. */
export interface Round {
  what: string
  everyMs: number
  act(signal: AbortSignal): Promise<void>
}

export const defaultIntervals: Intervals = { sweepEveryMs: 5000, driftEveryMs: 5000 }
/** One look at everything; a platform that hangs longer is asked again in the next one. */
const driftTimeoutMs = 60_000
/** What reconciles in flight get to finish before they are aborted; they go on where they were at the next start. */
const drainMs = 20_000
/** More due rows than a sweep's bells can carry: the next one does not wait for the usual time. */
const backlog = 64
const backlogSweepMs = 500
const loopsEndMs = 5000

/**
 * Works on due rows until it is stopped: first one drift pass, then bells, a sweep every 5 s, a drift pass every
 * 5 s, and the other rounds. A worker that is killed leaves nothing undone that the next one does not find.
 */
export async function startWorker(
  deps: LifecycleDeps,
  queue: ReconcileQueue,
  concurrency: number,
  { sweepEveryMs, driftEveryMs }: Intervals,
  starting: AbortSignal,
  others: readonly Round[],
) {
  const { db, sandboxes, log } = deps
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

  async function every(pauseMs: () => number, what: string, act: () => Promise<void>): Promise<void> {
    const health = logFirstAndRecovery(log, what)
    while (!stopping.signal.aborted) {
      await act().then(health.recovered, (error: unknown) => {
        if (!stopping.signal.aborted) health.failed(error)
      })
      await sleep(pauseMs(), undefined, { signal: stopping.signal }).catch(() => {})
    }
  }

  let sweepPauseMs = sweepEveryMs
  const elsewhere = new Set<string>()
  const loops = Promise.all([
    every(
      () => sweepPauseMs,
      'the sweep',
      async () => {
        const due = await sweep(db, sandboxes.name, lanes.sweepQueue())
        sweepPauseMs = due >= backlog ? Math.min(backlogSweepMs, sweepEveryMs) : sweepEveryMs
        for (const { sandboxDriver, rows } of await dueElsewhere(db, sandboxes.name)) {
          if (elsewhere.has(sandboxDriver)) continue
          elsewhere.add(sandboxDriver)
          log.warn({ sandboxDriver, rows }, `due instances wait for a worker with SANDBOX_DRIVER=${sandboxDriver}`)
        }
      },
    ),
    every(
      () => driftEveryMs,
      'the look for drift',
      () => findDrift(AbortSignal.any([stopping.signal, AbortSignal.timeout(driftTimeoutMs)])),
    ),
    ...others.map(({ what, everyMs, act }) =>
      every(
        () => everyMs,
        what,
        () => act(stopping.signal),
      ),
    ),
  ])

  return {
    async stop(): Promise<void> {
      stopping.abort()
      await working.stop(drainMs)
      await atMost(loopsEndMs, loops)
    },
  }
}
