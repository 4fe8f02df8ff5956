import type { PeriodicTask } from '#platform/periodic.ts'
import { type SandboxDriver, SandboxUnavailableError } from '#sandbox/driver.ts'

const everyMs = 5000
/** Longer than a driver waits for its platform's answer. */
const timeoutMs = 10_000

/** Whether the platform of a region is away, as one worker knows it. */
export interface PlatformOutage {
  /** Throws SandboxUnavailableError while the platform is away: no attempt waits in vain for its answer. */
  throwIfAway(): void
  /** Whether an attempt failed because the platform is away, which it is asked unless that is known. */
  isCauseOf(error: unknown, signal: AbortSignal): Promise<boolean>
  /** Asks a platform that is away whether it is back. */
  readonly task: PeriodicTask
}

/** A platform that its driver cannot lose, since it is this host, is never away. */
export function createPlatformOutage(sandboxes: Pick<SandboxDriver, 'outage'>): PlatformOutage {
  let sentence: string | null = null
  const ask = async (signal: AbortSignal) => {
    sentence = (await sandboxes.outage?.(signal)) ?? null
  }
  return {
    throwIfAway() {
      if (sentence !== null) throw new SandboxUnavailableError(new Error(sentence), { isLogged: true })
    },
    async isCauseOf(error, signal) {
      if (!(error instanceof SandboxUnavailableError)) return false
      if (sentence === null) await ask(signal)
      return sentence !== null
    },
    task: {
      name: 'the look at a platform that is away',
      everyMs,
      timeoutMs,
      async run(signal) {
        if (sentence !== null) await ask(signal)
      },
    },
  }
}
