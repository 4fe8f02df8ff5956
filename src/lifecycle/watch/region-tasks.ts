import { platformTask } from '#lifecycle/attempt/platform-outage.ts'
import type { LifecycleDeps } from '#lifecycle/attempt/reconcile.ts'
import type { Shards } from '#lifecycle/queue/shards.ts'
import type { Logger } from '#platform/log.ts'
import { type PeriodicTask, runPeriodically } from '#platform/periodic.ts'
import { SandboxUnavailableError } from '#sandbox/driver.ts'
import { createDriftDetection, type DriftDetection } from './drift.ts'
import { wakeTask } from './sleep.ts'
import { useTasks } from './use-watch.ts'
import { warmPoolTask } from './warm-pool.ts'

const firewallEveryMs = 60_000
/** Longer than the driver's limit for the container that adds rules. */
const firewallTimeoutMs = 70_000

/** Restores missing firewall rules that keep agents from their platform, and logs a warning when any were missing. */
export const firewallTask = ({ sandboxes, log }: Pick<LifecycleDeps, 'sandboxes' | 'log'>): PeriodicTask => ({
  name: 'check_firewall',
  everyMs: firewallEveryMs,
  timeoutMs: firewallTimeoutMs,
  async run(signal) {
    try {
      if (await sandboxes.protect?.(signal)) {
        log.warn('firewall rules of agents were missing on the host of dockerd, and have been added again')
      }
    } catch (error) {
      if (error instanceof SandboxUnavailableError && error.isLogged) return
      throw error
    }
  },
})

/** A platform that hangs longer at the start is asked again by the periodic work. */
const detectTimeoutMs = 60_000

/** The periodic work of a worker in one region. src/lifecycle/README.md lists it. */
export const regionTasks = (
  deps: LifecycleDeps,
  driftEveryMs: number,
  drift: DriftDetection,
  shards: Pick<Shards, 'of'>,
): PeriodicTask[] => [
  ...drift.tasks(driftEveryMs),
  platformTask(deps),
  firewallTask(deps),
  ...useTasks(deps, () => shards.of(deps)),
  wakeTask(deps, () => shards.of(deps).index === 0),
  warmPoolTask(deps, () => shards.of(deps).index === 0),
]

export interface RegionWork {
  /**
   * Starts the periodic work of these regions, and detects drift once in each before it resolves. Throws the reason of
   * the signal.
   */
  serve(regions: readonly LifecycleDeps[], starting: AbortSignal): Promise<void>
  /** Resolves when the last runs have ended, once `stopping` is aborted. */
  ended(): Promise<unknown>
}

/** The periodic work of a worker in its regions. Regions run independently: a platform that hangs delays no other. */
export function createRegionWork(
  driftEveryMs: number,
  shards: Pick<Shards, 'of'>,
  stopping: AbortSignal,
  log: Logger,
): RegionWork {
  const runs: Promise<void>[] = []

  async function begin(region: LifecycleDeps, starting: AbortSignal): Promise<void> {
    const drift = createDriftDetection(region, () => shards.of(region))
    // Not logged: the periodic run follows at once, and logs a failure that lasts.
    await drift.detect(AbortSignal.any([starting, AbortSignal.timeout(detectTimeoutMs)])).catch(() => {})
    starting.throwIfAborted()
    const tasks = regionTasks(region, driftEveryMs, drift, shards)
    runs.push(runPeriodically(tasks, stopping, log))
  }

  return {
    async serve(regions, starting) {
      await Promise.all(regions.map((region) => begin(region, starting)))
    },
    ended: () => Promise.all(runs),
  }
}
