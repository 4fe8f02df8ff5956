import type { InstanceQueue, InstanceRef } from '#instances/queue.ts'

/** Bells an organization has kept for it; a sweep rings for what is beyond. */
const maxKept = 64

/** A worker's lanes, shared between organizations. */
export interface OrganizationConcurrency {
  /**
   * Runs `work` at once, or, when the row's organization has all that it may have, not at all: its bell is kept, and rung
   * again once it has a lane less.
   */
  run(due: InstanceRef, work: () => Promise<void>): Promise<void>
  /**
   * A bell for one sweep. While an organization has all its lanes it does not ring for rows whose own bell is kept, and
   * never for more than there may be lanes and kept bells: others would be in vain, and a slow worker busy with them alone.
   */
  sweepQueue(): InstanceQueue
}

/**
 * Gives an organization `mostOfOne` lanes at most. With a lane more than that there is always one for the others,
 * whatever hangs in an organization's own.
 */
export function createOrganizationConcurrency(
  maxPerOrganization: number,
  queue: InstanceQueue,
): OrganizationConcurrency {
  const lanes = new Map<string, number>()
  const kept = new Map<string, Map<string, InstanceRef>>()

  function keep(due: InstanceRef): void {
    const its = kept.get(due.organizationId) ?? new Map<string, InstanceRef>()
    if (its.size < maxKept) kept.set(due.organizationId, its.set(due.id, due))
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
    queue.enqueue(next)
  }

  return {
    async run(due, work) {
      const { organizationId } = due
      const taken = lanes.get(organizationId) ?? 0
      if (taken >= maxPerOrganization) return keep(due)
      lanes.set(organizationId, taken + 1)
      await work().finally(() => free(organizationId))
    },
    sweepQueue() {
      const rung = new Map<string, number>()
      return {
        enqueue(due) {
          const { organizationId, id } = due
          const [its, taken] = [kept.get(organizationId), lanes.get(organizationId) ?? 0]
          if (taken >= maxPerOrganization && its?.has(id)) return // the next lane that gets free rings for one of them
          const count = rung.get(organizationId) ?? 0
          if (count >= maxPerOrganization - taken + maxKept - (its?.size ?? 0)) return
          rung.set(organizationId, count + 1)
          queue.enqueue(due)
        },
      }
    },
  }
}
