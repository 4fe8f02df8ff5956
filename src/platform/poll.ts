import { setTimeout as sleep } from 'node:timers/promises'

export interface PollOptions {
  /** The pause between two checks, in ms; a function of the number of checks, for a pause that grows. */
  pauseMs: number | ((checks: number) => number)
  /** In ms. */
  timeoutMs: number
  signal?: AbortSignal
}

/**
 * Calls `check` until it returns a truthy value, and returns that value; undefined after the timeout. The first check
 * is made at once, the last one at the timeout. Throws the error of `check`, and the reason of the signal once it is
 * aborted.
 */
export async function poll<T>(
  check: () => T | Promise<T>,
  { pauseMs, timeoutMs, signal }: PollOptions,
): Promise<Exclude<T, false | null | undefined | 0 | ''> | undefined> {
  const deadline = performance.now() + timeoutMs
  let isLast = false
  for (let checks = 1; ; checks += 1) {
    signal?.throwIfAborted()
    const result = await check()
    if (result) return result as Exclude<T, false | null | undefined | 0 | ''>
    const left = deadline - performance.now()
    if (isLast || left <= 0) return undefined
    const pause = typeof pauseMs === 'number' ? pauseMs : pauseMs(checks)
    isLast = pause >= left // a timer may fire a moment before the deadline
    await sleep(Math.min(pause, left), undefined, signal ? { signal } : {}).catch((error: unknown) => {
      throw signal?.aborted ? signal.reason : error
    })
  }
}
