import type { Bell, Due } from '../platform/bell.ts'

/** Bells an organization has kept for it; a sweep rings for what is beyond. */
const mostKept = 64

/**
 * Shares a worker's lanes between organizations: runs `work` at once, or, when the row's organization has `mostOfOne`
 * lanes, not at all: its bell is rung again once it has one less. With a lane more than that there is always one for the
 * others, whatever hangs in an organization's own.
 */
export function openLanes(mostOfOne: number, bell: Bell) {
  const lanes = new Map<string, number>()
  const kept = new Map<string, Map<string, Due>>()

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
    const taken = lanes.get(organizationId) ?? 0
    if (taken >= mostOfOne) return keep(due)
    lanes.set(organizationId, taken + 1)
    await work().finally(() => free(organizationId))
  }
}
