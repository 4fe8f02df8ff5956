import type { Logger } from '#platform/log.ts'
import { poll } from '#platform/poll.ts'

/** The lower bounds of the limits. Of four starts one organization may hold two, and two others one each. */
const least = { ofRegion: 4, ofOrganization: 2 }
/** A limit is reset when none of its gateways has ended for this long. */
const forgetMs = 30 * 60_000
const waitMs = 30 * 60_000
const pauseMs = 100

/** Limits how many gateways of a region one worker starts at the same time. */
export interface StartLimit {
  /** Waits until the gateway may start. False after 30 minutes. Throws the reason of the signal. */
  enter(id: string, organizationId: string, signal: AbortSignal): Promise<boolean>
  /**
   * Reports the result of a start: ready, ended before that, or unknown. Does nothing for a gateway that has not
   * entered.
   */
  leave(id: string, result: 'ready' | 'ended' | 'unknown'): void
}

/** Key of the limit of all organizations together. */
const everyone = ''

/**
 * Lets `most` gateways start at the same time. OpenClaw exits when one of its threads takes longer than 5 s to start,
 * so starts on a busy host end each other, and retries do so again. When a gateway ends that started beside others, the
 * limit is halved. For each one that gets ready while others wait it grows by one (additive increase, multiplicative
 * decrease). A tenant can make its gateways end, so an end lowers the limit of its organization alone. The common limit
 * is lowered only when gateways of two organizations that started together have ended. An organization may hold as many
 * starts as it leaves free, as in `createPlaces`.
 */
export function createStartLimit(most: number, log: Pick<Logger, 'warn'>): StartLimit {
  /** The lowered limits. All gateways that began before `halvedAt` together halve a limit once. */
  const limits = new Map<string, { starts: number; halvedAt: number; endedAt: number }>()
  let lastEnd = { organizationId: everyone, at: 0 }
  /** `among`: the most gateways that started at the same time as this one. `amongOwn`: those of its organization. */
  const starting = new Map<string, { organizationId: string; at: number; among: number; amongOwn: number }>()
  /** Organizations by gateway id, in the order of arrival. */
  const waiting = new Map<string, string>()

  const heldBy = (organizationId: string) =>
    [...starting.values()].filter((start) => start.organizationId === organizationId).length
  const limitOf = (whose: string) => limits.get(whose)?.starts ?? most
  const mayHoldMore = (organizationId: string) => heldBy(organizationId) < limitOf(organizationId)
  const mayStart = (organizationId: string) =>
    mayHoldMore(organizationId) && heldBy(organizationId) < limitOf(everyone) - starting.size

  function enterIfNext(id: string): boolean {
    forgetOld()
    const next = [...waiting].find(([, organizationId]) => mayStart(organizationId))
    if (next?.[0] !== id) return false
    const [, organizationId] = next
    waiting.delete(id)
    starting.set(id, { organizationId, at: performance.now(), among: 0, amongOwn: 0 })
    for (const start of starting.values()) {
      start.among = Math.max(start.among, starting.size)
      start.amongOwn = Math.max(start.amongOwn, heldBy(start.organizationId))
    }
    return true
  }

  function forgetOld(): void {
    const before = performance.now() - forgetMs
    for (const [whose, { endedAt }] of limits) if (endedAt < before) limits.delete(whose)
  }

  function halve(whose: string, among: number, floor: number, startedAt: number): void {
    const now = performance.now()
    const limit = limits.get(whose)
    if (limit) limit.endedAt = now
    if (among <= floor || startedAt < (limit?.halvedAt ?? 0)) return
    const starts = Math.max(floor, Math.floor(among / 2))
    limits.set(whose, { starts, halvedAt: now, endedAt: now })
    const fields = { limit: starts, ...(whose !== everyone && { organizationId: whose }) }
    log.warn(fields, 'gateways end while many start: fewer start at the same time')
  }

  function raise(whose: string): void {
    const limit = limits.get(whose)
    if (limit) limit.starts = Math.min(most, limit.starts + 1)
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
      const { organizationId, at, among, amongOwn } = start
      starting.delete(id)
      if (result === 'ready' && waiting.size > 0) raise(organizationId)
      // Gateways that wait for the limit of their own organization are no evidence about the common limit.
      if (result === 'ready' && [...waiting.values()].some(mayHoldMore)) raise(everyone)
      if (result !== 'ended') return
      halve(organizationId, amongOwn, least.ofOrganization, at)
      if (lastEnd.organizationId !== organizationId && at < lastEnd.at) halve(everyone, among, least.ofRegion, at)
      lastEnd = { organizationId, at: performance.now() }
    },
  }
}
