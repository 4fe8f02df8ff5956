import { setTimeout as sleep } from 'node:timers/promises'
import { LRUCache } from 'lru-cache'

/** All times are in ms. */
export interface PaceTimes {
  /** The longest pause for a vendor's `Retry-After`. */
  longestPauseMs: number
  /** The pause after an answer without a time. */
  shortestPauseMs: number
  /** The longest wait of a call before it is sent anyway. */
  longestWaitMs: number
  /** The time between two waiting calls. */
  spacingMs: number
}

export const defaultPace: PaceTimes = {
  longestPauseMs: 60_000,
  shortestPauseMs: 1000,
  longestWaitMs: 20_000,
  spacingMs: 100,
}

/** Maximum remembered keys with a pause. */
const maxKeys = 10_000

/** Statuses by which vendors pause a key: a rate limit, an overload. */
const pausingStatuses: ReadonlySet<number> = new Set([429, 503, 529])

interface Pause {
  until: number
  /** The time at which the next waiting call may be sent. */
  nextAt: number
}

/**
 * Paces the calls of each key: after an answer that asks to wait, the others wait in the relay. Otherwise each agent of
 * the organization would be refused in turn, and OpenClaw pauses for half a minute and longer after a refusal.
 */
export interface Pace {
  /**
   * Waits until a call with this key may be sent, `longestWaitMs` at most. Returns whether it has waited. Throws the
   * signal's reason.
   */
  wait(keyId: string, signal: AbortSignal): Promise<boolean>
  /** Records an answer of the vendor, and the pause that it asks for, if any. */
  record(keyId: string, status: number, waitMs: number | null): void
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
        // An earlier call may have received another pause.
        if (pause.until <= at || performance.now() >= latest) return true
      }
    },
    record(keyId, status, waitMs) {
      if (!pausingStatuses.has(status)) return
      const until = performance.now() + Math.min(waitMs ?? shortestPauseMs, longestPauseMs)
      const pause = pauses.get(keyId)
      if (pause) pause.until = Math.max(pause.until, until)
      else pauses.set(keyId, { until, nextAt: 0 })
    },
  }
}
