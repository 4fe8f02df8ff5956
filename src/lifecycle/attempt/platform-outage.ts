import type { Logger } from '#platform/log.ts'
import type { PeriodicTask } from '#platform/periodic.ts'
import type { SandboxDriver } from '#sandbox/driver.ts'

const everyMs = 5000
/** Longer than a driver's timeout for its platform. */
const timeoutMs = 10_000

/** Whether the platform of a region is unreachable, as this worker has observed. */
export interface PlatformOutage {
  readonly isAway: boolean
  /** Asks the platform, and returns whether it is unreachable. Throws the reason of the signal. */
  probe(signal: AbortSignal): Promise<boolean>
  /** Probes a platform that is unreachable until it is back. */
  readonly task: PeriodicTask
}

/**
 * A driver without `outage` runs on this host, and its platform is never unreachable. Each outage and its end are
 * logged.
 */
export function createPlatformOutage(
  sandboxes: Pick<SandboxDriver, 'outage'>,
  log: Pick<Logger, 'info' | 'warn'>,
): PlatformOutage {
  let isAway = false
  async function probe(signal: AbortSignal): Promise<boolean> {
    const sentence = (await sandboxes.outage?.(signal)) ?? null
    if (sentence !== null && !isAway) log.warn(`the platform is unreachable, instances wait: ${sentence}`)
    if (sentence === null && isAway) log.info('the platform is reachable again')
    isAway = sentence !== null
    return isAway
  }
  return {
    get isAway() {
      return isAway
    },
    probe,
    task: {
      name: 'probe_platform',
      everyMs,
      timeoutMs,
      async run(signal) {
        if (isAway) await probe(signal)
      },
    },
  }
}
