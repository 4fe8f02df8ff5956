import { setTimeout as sleep } from 'node:timers/promises'

/** The time between two answers that refuse a token, in ms: a hundred a second. */
const spacingMs = 10
/** An answer that would have to wait for longer is not given. */
const longestWaitMs = 1000

/**
 * Paces the answers that refuse a token. An agent that guesses tokens waits for each answer: so its guesses take
 * neither the time of the process nor the database from the calls of others.
 */
export interface Refusals {
  /** Waits until a token may be refused; false when too many wait, and the connection is to be cut. */
  wait(): Promise<boolean>
}

export function createRefusals(): Refusals {
  let nextAt = 0
  return {
    async wait() {
      const now = performance.now()
      const at = Math.max(now, nextAt)
      if (at - now > longestWaitMs) return false
      nextAt = at + spacingMs
      await sleep(at - now)
      return true
    },
  }
}
