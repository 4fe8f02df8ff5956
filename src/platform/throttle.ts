import { setTimeout as sleep } from 'node:timers/promises'

/** Amounts by id. An id at 0 takes no memory. */
export function createAmounts() {
  const amounts = new Map<string, number>()
  return {
    of: (id: string) => amounts.get(id) ?? 0,
    add(id: string, amount: number): void {
      const sum = (amounts.get(id) ?? 0) + amount
      if (sum > 0) amounts.set(id, sum)
      else amounts.delete(id)
    },
  }
}

export interface PlaceLimits {
  /** Concurrent calls of one instance. */
  perInstance: number
  /** Concurrent calls of all instances of one organization. */
  perOrganization: number
  /** Calls of one instance that begin in a second. */
  perSecond: number
}

/** Counts the open calls of instances and organizations, and those that begin in a second. */
export interface Places {
  /** Counts a call, and returns the function that uncounts it; null at a limit. */
  take(instanceId: string, organizationId: string): (() => void) | null
}

export function createPlaces({ perInstance, perOrganization, perSecond }: PlaceLimits): Places {
  const counts = createAmounts()
  let second = 0
  let begun = createAmounts()
  return {
    take(instanceId, organizationId) {
      const now = Math.floor(performance.now() / 1000)
      if (now !== second) begun = createAmounts()
      second = now
      if (begun.of(instanceId) >= perSecond) return null
      begun.add(instanceId, 1)
      if (counts.of(instanceId) >= perInstance || counts.of(organizationId) >= perOrganization) return null
      for (const id of [instanceId, organizationId]) counts.add(id, 1)
      return () => {
        for (const id of [instanceId, organizationId]) counts.add(id, -1)
      }
    },
  }
}

/** The time between two answers that refuse a token, in ms: a hundred a second. */
const spacingMs = 10
/** The longest wait for such an answer; beyond it there is none. */
const longestWaitMs = 1000

/**
 * Paces the answers that refuse a token. An agent that guesses tokens waits for each answer, so that its guesses take
 * neither processor time nor the database from other calls.
 */
export interface Refusals {
  /** Waits until a token may be refused; false when too many wait, and the connection must be cut. */
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

/** Together with the cache time of grants, an open connection that is no longer permitted ends within a second. */
const recheckEveryMs = 500

/** Runs a check of open connections every half second, never twice at once. Returns a function that stops it. */
export function startRechecks(check: () => Promise<unknown>): () => void {
  let isChecking = false
  const timer = setInterval(() => {
    if (isChecking) return
    isChecking = true
    void check().finally(() => {
      isChecking = false
    })
  }, recheckEveryMs).unref()
  return () => clearInterval(timer)
}
