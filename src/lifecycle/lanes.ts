import { LRUCache } from 'lru-cache'
import type { Bell, Due } from '../platform/bell.ts'

/** An organization has all lanes once no other has had work for this long. */
const othersCountForMs = 10 * 60_000
/** Bells an organization has kept for it; a sweep rings for what is beyond. */
const mostKept = 64

/**
 * Leaves one of a worker's lanes to the others, whatever hangs in an organization's own: runs `work` at once, or, when
 * the row's organization has all lanes but one and is not alone, not at all: its bell is rung again once it has a lane less.
 */
export function openLanes(concurrency: number, bell: Bell) {
  const mostOfOne = Math.max(1, concurrency - 1)
  const lanes = new Map<string, number>()
  const kept = new Map<string, Map<string, Due>>()
  /** The two that had work last. */
  const seen = new LRUCache<string, true>({ max: 2, ttl: othersCountForMs })

  const isAlone = (organizationId: string) => [...seen.keys()].every((other) => other === organizationId)

  function keep(due: Due): void {
    const its = kept.get(due.organizationId) ?? new Map<string, Due>()
    if (its.size < mostKept) kept.set(due.organizationId, its.set(due.id, due))
  }

  function free(organizationId: string): void {
    const left = (lanes.get(organizationId) ?? 1) - 1
    if (left > 0) lanes.set(organizationId, left)
    else lanes.delete(organizationId)
    const its = kept.get(organizationId)
    const [next] = its?.values() ?? []
    if (!its || !next) return
    its.delete(next.id)
    if (its.size === 0) kept.delete(organizationId)
    bell.ring(next)
  }

  return async (due: Due, work: () => Promise<void>): Promise<void> => {
    const { organizationId } = due
    seen.set(organizationId, true)
    const taken = lanes.get(organizationId) ?? 0
    if (taken >= mostOfOne && !isAlone(organizationId)) return keep(due)
    lanes.set(organizationId, taken + 1)
    await work().finally(() => free(organizationId))
  }
}
