import type { Logger } from '#platform/log.ts'
import type { PeriodicTask } from '#platform/periodic.ts'
import type { SandboxDriver } from '#sandbox/driver.ts'

const everyMs = 5000
/** Longer than a driver waits for its platform's answer. */
const timeoutMs = 10_000

/** Whether the platform of a region is away, as one worker knows it. */
export interface PlatformOutage {
  readonly isAway: boolean
  /** Asks the platform, and returns whether it is away. Throws the reason of the signal. */
  look(signal: AbortSignal): Promise<boolean>
  /** Asks a platform that is away whether it is back. */
  readonly task: PeriodicTask
}

/** A platform that its driver cannot lose, since it is this host, is never away. The log has each outage and its end. */
export function createPlatformOutage(
  sandboxes: Pick<SandboxDriver, 'outage'>,
  log: Pick<Logger, 'info' | 'warn'>,
): PlatformOutage {
  let isAway = false
  async function look(signal: AbortSignal): Promise<boolean> {
    const sentence = (await sandboxes.outage?.(signal)) ?? null
    if (sentence !== null && !isAway) log.warn(`instances wait for their platform: ${sentence}`)
    if (sentence === null && isAway) log.info('the platform is back: instances wait for it no more')
    isAway = sentence !== null
    return isAway
  }
  return {
    get isAway() {
      return isAway
    },
    look,
    task: {
      name: 'probe_platform',
      everyMs,
      timeoutMs,
      async run(signal) {
        if (isAway) await look(signal)
      },
    },
  }
}
