import { setTimeout as sleep } from 'node:timers/promises'

/** Amounts by id. An id without any takes no memory. */
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
  /** Calls of one instance at the same time. */
  perInstance: number
  /** Calls of all instances of one organization at the same time. */
  perOrganization: number
}

/** Counts the open calls of instances and organizations. */
export interface Places {
  /** Takes a place for a call, and returns what gives it back; null when there is none. */
  take(instanceId: string, organizationId: string): (() => void) | null
}

export function createPlaces({ perInstance, perOrganization }: PlaceLimits): Places {
  const counts = createAmounts()
  return {
    take(instanceId, organizationId) {
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
/** An answer that would have to wait for longer is not given. */
const longestWaitMs = 1000

/**
 * Paces the answers that refuse a token. An agent that guesses tokens waits for each answer, so that its guesses take
 * neither the time of the process nor the database from the calls of others.
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

/** With the time that grants are cached, an open connection that is no longer allowed ends within a second. */
const recheckEveryMs = 500

/** Runs a check of open connections every half second, never twice at once. Returns what stops it. */
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
