import type { Db } from '#database/client.ts'
import { postponeDue } from '#instances/claim.ts'
import type { Region } from '#instances/regions.ts'
import type { Logger } from '#platform/log.ts'
import type { PeriodicTask } from '#platform/periodic.ts'
import type { SandboxDriver } from '#sandbox/driver.ts'

const everyMs = 5000
/** Longer than a driver's timeout for its platform. */
const timeoutMs = 10_000

/** Shown to callers in place of the step that could not be carried out. */
const waitingForPlatform = 'waiting for the platform'
const platformIsAway = 'The platform of the sandbox is not available.'

/** Whether the platform of a region is unreachable, as this worker has observed. */
export interface PlatformOutage {
  readonly isAway: boolean
  /** Asks the platform, and returns whether it is unreachable. Throws the reason of the signal. */
  probe(signal: AbortSignal): Promise<boolean>
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
  }
}

interface WatchedRegion extends Region {
  db: Db
  platformOutage: PlatformOutage
}

/** Probes a platform that is unreachable until it is back. Its due rows, which no worker claims, show what they wait for. */
export const platformTask = ({ db, platformOutage, ...region }: WatchedRegion): PeriodicTask => ({
  name: 'probe_platform',
  everyMs,
  timeoutMs,
  async run(signal) {
    if (!platformOutage.isAway || !(await platformOutage.probe(signal))) return
    await postponeDue(db, region, waitingForPlatform, platformIsAway)
  },
})
