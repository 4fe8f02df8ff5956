import { availableParallelism } from 'node:os'
import { poll } from '#platform/poll.ts'
import { createPlaces } from './places.ts'

/**
 * How many gateways of a region one worker starts at the same time. OpenClaw ends itself when one of its threads takes
 * longer than 5 s to start: of 20 that start together on two processors none gets ready.
 */
export const maxStarts = Math.max(8, 2 * availableParallelism())

const waitMs = 30 * 60_000
const pauseMs = 100

/** The gateways that start. An organization may hold as many starts as it leaves free. */
export interface StartLimit {
  /** Waits until the gateway may start. False after 30 minutes. Throws the reason of the signal. */
  enter(id: string, organizationId: string, signal: AbortSignal): Promise<boolean>
  /** Ends the start of a gateway. Does nothing for one that has not entered. */
  leave(id: string): void
}

/** Limits the starts of one worker in one region. It is empty after a restart of the worker: rows enter it again. */
export function createStartLimit(): StartLimit {
  const places = createPlaces(maxStarts)
  const organizationOf = new Map<string, string>()

  function enterIfFree(id: string, organizationId: string): boolean {
    if (places.free === 0 || places.full().includes(organizationId)) return false
    places.take(organizationId)
    organizationOf.set(id, organizationId)
    return true
  }

  return {
    async enter(id, organizationId, signal) {
      if (organizationOf.has(id)) return true
      return (await poll(() => enterIfFree(id, organizationId), { pauseMs, timeoutMs: waitMs, signal })) ?? false
    },
    leave(id) {
      const organizationId = organizationOf.get(id)
      if (organizationId === undefined) return
      organizationOf.delete(id)
      places.leave(organizationId)
    },
  }
}
