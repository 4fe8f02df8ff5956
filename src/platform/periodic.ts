import { setTimeout as sleep } from 'node:timers/promises'
import { type Logger, logFirstAndRecovery } from './log.ts'

/** Work that is repeated for as long as the process runs. */
export interface PeriodicTask {
  /** A verb and an object, such as `probe_platform`. The log says `<name> failed` and `<name> works again`. */
  name: string
  /** The pause between two runs, in ms; a function for a pause that depends on the last run. */
  everyMs: number | (() => number)
  /** The signal of a run is aborted after this time, in ms. */
  timeoutMs: number
  run(signal: AbortSignal): Promise<void>
}

/**
 * Runs every task at once, and again after each pause, until `signal` is aborted, which aborts the signals of the runs
 * as well. Two runs of one task never overlap. Of several failures in a row the first is logged, and then the next
 * success. Resolves when the last runs have ended.
 */
export async function runPeriodically(
  tasks: readonly PeriodicTask[],
  signal: AbortSignal,
  log: Pick<Logger, 'info' | 'warn'>,
): Promise<void> {
  await Promise.all(tasks.map((task) => repeat(task, signal, log)))
}

async function repeat(
  { name, everyMs, timeoutMs, run }: PeriodicTask,
  signal: AbortSignal,
  log: Pick<Logger, 'info' | 'warn'>,
): Promise<void> {
  const outage = logFirstAndRecovery(log, `${name} failed`, `${name} works again`)
  while (!signal.aborted) {
    try {
      await run(AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)]))
      outage.recovered()
    } catch (error) {
      if (!signal.aborted) outage.failed(error)
    }
    await sleep(typeof everyMs === 'number' ? everyMs : everyMs(), undefined, { signal }).catch(() => {})
  }
}
