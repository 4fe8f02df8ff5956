import type { Bell, Due } from '../platform/bell.ts'

/** Of a worker's lanes one organization has this part at most: its starts that hang keep nobody else waiting. */
const shareOfOne = 0.75
/** Bells an organization has kept for it; a sweep rings for what is beyond. */
const mostKept = 64

/**
 * Shares a worker's lanes between organizations: runs `work` at once, or, when the row's organization has its share,
 * not at all: its bell is rung again as soon as one of its lanes is free.
 */
export function openLanes(concurrency: number, bell: Bell) {
  const mostOfOne = Math.max(1, Math.floor(concurrency * shareOfOne))
  const taken = new Map<string, number>()
  const kept = new Map<string, Map<string, Due>>()

  function keep(due: Due): void {
    const its = kept.get(due.organizationId) ?? new Map<string, Due>()
    if (its.size < mostKept) kept.set(due.organizationId, its.set(due.id, due))
  }

  function free(organizationId: string): void {
    const left = (taken.get(organizationId) ?? 1) - 1
    if (left > 0) taken.set(organizationId, left)
    else taken.delete(organizationId)
    const its = kept.get(organizationId)
    const [next] = its?.values() ?? []
    if (!its || !next) return
    its.delete(next.id)
    if (its.size === 0) kept.delete(organizationId)
    bell.ring(next)
  }

  return async (due: Due, work: () => Promise<void>): Promise<void> => {
    const { organizationId } = due
    const lanes = taken.get(organizationId) ?? 0
    if (lanes >= mostOfOne) return keep(due)
    taken.set(organizationId, lanes + 1)
    await work().finally(() => free(organizationId))
  }
}
