import { setTimeout as sleep } from 'node:timers/promises'
import { LRUCache } from 'lru-cache'

/** All times are in ms. */
export interface PaceTimes {
  /** The longest pause that a vendor's `Retry-After` makes. */
  longestPauseMs: number
  /** The pause after an answer that says no time. */
  shortestPauseMs: number
  /** How long a call waits at most before it is sent all the same. */
  longestWaitMs: number
  /** The time between two calls that have waited. */
  spacingMs: number
}

export const defaultPace: PaceTimes = {
  longestPauseMs: 60_000,
  shortestPauseMs: 1000,
  longestWaitMs: 20_000,
  spacingMs: 100,
}

/** Keys with a pause that are remembered at most. */
const maxKeys = 10_000

/** How vendors say that they take no more calls with a key for now: a rate limit, an overload. */
const pausingStatuses: ReadonlySet<number> = new Set([429, 503, 529])

interface Pause {
  until: number
  /** When the next call that waits may be sent. */
  nextAt: number
}

/**
 * Paces the calls of each key: after an answer that says to wait, the others wait in the relay. Else each agent of the
 * organization would be refused in turn, and OpenClaw does not ask again for half a minute and longer after a refusal.
 */
export interface Pace {
  /**
   * Waits until a call with this key may be sent, `longestWaitMs` at most. Returns whether it has waited. Throws the
   * signal's reason.
   */
  wait(keyId: string, signal: AbortSignal): Promise<boolean>
  /** Notes an answer of the vendor, and the time that it asks to wait, if any. */
  note(keyId: string, status: number, waitMs: number | null): void
}

export function createPace({ longestPauseMs, shortestPauseMs, longestWaitMs, spacingMs }: PaceTimes): Pace {
  const pauses = new LRUCache<string, Pause>({ max: maxKeys })
  return {
    async wait(keyId, signal) {
      const latest = performance.now() + longestWaitMs
      for (let hasWaited = false; ; hasWaited = true) {
        const pause = pauses.get(keyId)
        if (!pause) return hasWaited
        const now = performance.now()
        const at = Math.max(pause.until, pause.nextAt)
        if (at <= now) {
          pauses.delete(keyId)
          return hasWaited
        }
        pause.nextAt = at + spacingMs
        await sleep(Math.min(at, latest) - now, undefined, { signal }).catch(() => signal.throwIfAborted())
        // A call that went before it may have been told to wait again.
        if (pause.until <= at || performance.now() >= latest) return true
      }
    },
    note(keyId, status, waitMs) {
      if (!pausingStatuses.has(status)) return
      const until = performance.now() + Math.min(waitMs ?? shortestPauseMs, longestPauseMs)
      const pause = pauses.get(keyId)
      if (pause) pause.until = Math.max(pause.until, until)
      else pauses.set(keyId, { until, nextAt: 0 })
    },
  }
}
