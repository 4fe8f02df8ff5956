import type { Logger } from '#platform/log.ts'
import { type PeriodicTask, runPeriodically } from '#platform/periodic.ts'
import { createDriftDetection, type DriftDetection } from './drift.ts'
import { firewallTask } from './firewall.ts'
import type { LifecycleDeps } from './reconcile.ts'
import type { Shards } from './shards.ts'
import { useTasks } from './use-watch.ts'

/** A platform that hangs at the start for longer is asked again by the periodic work. */
const detectTimeoutMs = 60_000

/** The periodic work of a worker in one region. docs/operations.md shows it. */
export const regionTasks = (
  deps: LifecycleDeps,
  driftEveryMs: number,
  drift: DriftDetection,
  shards: Pick<Shards, 'of'>,
): PeriodicTask[] => [
  ...drift.tasks(driftEveryMs),
  deps.platformOutage.task,
  firewallTask(deps),
  ...useTasks(deps, () => shards.of(deps)),
]

export interface RegionWork {
  /**
   * Does the periodic work of these regions, and no more that of others. Detects drift once in each new one before it
   * resolves. Throws the reason of the signal.
   */
  serve(regions: readonly LifecycleDeps[], starting: AbortSignal): Promise<void>
  /** Resolves when the last runs have ended, once `stopping` is aborted. */
  ended(): Promise<unknown>
}

/** The periodic work of a worker in its regions, each apart: a platform that hangs delays no other. */
export function createRegionWork(
  driftEveryMs: number,
  shards: Pick<Shards, 'of'>,
  stopping: AbortSignal,
  log: Logger,
): RegionWork {
  const stops = new Map<LifecycleDeps, AbortController>()
  const runs = new Set<Promise<void>>()

  async function begin(region: LifecycleDeps, starting: AbortSignal): Promise<void> {
    const stop = new AbortController()
    stops.set(region, stop)
    const drift = createDriftDetection(region, () => shards.of(region))
    // A failure is not logged: the periodic run, which follows at once, logs one that lasts.
    await drift.detect(AbortSignal.any([starting, AbortSignal.timeout(detectTimeoutMs)])).catch(() => {})
    starting.throwIfAborted()
    const tasks = regionTasks(region, driftEveryMs, drift, shards)
    const run = runPeriodically(tasks, AbortSignal.any([stopping, stop.signal]), log).finally(() => runs.delete(run))
    runs.add(run)
  }

  return {
    async serve(regions, starting) {
      for (const [region, stop] of stops) {
        if (regions.includes(region)) continue
        stop.abort()
        stops.delete(region)
      }
      await Promise.all(regions.filter((region) => !stops.has(region)).map((region) => begin(region, starting)))
    },
    ended: () => Promise.all(runs),
  }
}
