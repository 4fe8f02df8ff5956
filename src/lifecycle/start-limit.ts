import type { Logger } from '#platform/log.ts'
import { poll } from '#platform/poll.ts'

/** The limit is never lower: one organization may hold two of these starts, and two others one each. */
const least = 4
const waitMs = 30 * 60_000
const pauseMs = 100

/** How many gateways of a region one worker starts at the same time. */
export interface StartLimit {
  /** Waits until the gateway may start. False after 30 minutes. Throws the reason of the signal. */
  enter(id: string, organizationId: string, signal: AbortSignal): Promise<boolean>
  /**
   * For a gateway that starts no more: it is ready, it ended by itself before that, or it is not known. Does nothing for
   * one that has not entered.
   */
  leave(id: string, result: 'ready' | 'ended' | 'unknown'): void
}

/**
 * Lets `most` gateways start at the same time, until one ends that starts beside others: the host may be too busy.
 * OpenClaw ends itself when a thread of it takes longer than 5 s to start, and those that try again together end each
 * other again. So the limit is halved then, and is one more for each that gets ready while others wait (additive
 * increase, multiplicative decrease). An organization may hold as many starts as it leaves free, as with places.
 */
export function createStartLimit(most: number, log: Pick<Logger, 'warn'>): StartLimit {
  let limit = most
  /** Those that began before were too many together: the limit is halved once for all of them. */
  let halvedAt = 0
  const starting = new Map<string, { organizationId: string; at: number }>()
  /** In the order of their arrival. */
  const waiting = new Map<string, string>()

  const heldBy = (organizationId: string) =>
    [...starting.values()].filter((start) => start.organizationId === organizationId).length
  const mayStart = (organizationId: string) => heldBy(organizationId) < limit - starting.size

  function enterIfNext(id: string): boolean {
    const next = [...waiting].find(([, organizationId]) => mayStart(organizationId))
    if (next?.[0] !== id) return false
    waiting.delete(id)
    starting.set(id, { organizationId: next[1], at: performance.now() })
    return true
  }

  return {
    async enter(id, organizationId, signal) {
      if (starting.has(id)) return true
      waiting.set(id, organizationId)
      try {
        return (await poll(() => enterIfNext(id), { pauseMs, timeoutMs: waitMs, signal })) ?? false
      } finally {
        waiting.delete(id)
      }
    },
    leave(id, result) {
      const start = starting.get(id)
      if (!start) return
      const among = starting.size
      starting.delete(id)
      if (result === 'ready' && waiting.size > 0) limit = Math.min(most, limit + 1)
      if (result !== 'ended' || among <= least || start.at < halvedAt) return
      halvedAt = performance.now()
      limit = Math.max(least, Math.floor(among / 2))
      log.warn({ limit }, 'gateways end while many start: fewer start at the same time')
    },
  }
}
