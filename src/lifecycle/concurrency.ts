import type { InstanceQueue, InstanceRef } from '#instances/queue.ts'

/** Instances of one organization that a worker defers; the sweep finds the ones beyond. */
const maxDeferred = 64

/** So many organizations have room beside one whose runs all hang, even while theirs hang too. */
const otherOrganizations = 4

/** Shares a worker's concurrency between organizations. */
export interface OrganizationConcurrency {
  /** The greatest number of runs at a time. */
  readonly total: number
  /**
   * Runs `work` at once when the instance's organization is below its limit. Otherwise `work` does not run: the
   * instance is deferred, and enqueued again once there is room for it.
   */
  run(instance: InstanceRef, work: () => Promise<void>): Promise<void>
  /**
   * A queue for one sweep. It drops instances that a worker could not run soon: deferred ones, while their organization
   * is at its limit, and more of one organization than can run or be deferred. They would only keep a slow worker busy.
   */
  sweepQueue(): InstanceQueue
}

/**
 * Limits each organization to `maxPerOrganization` runs at a time, and to a single one while there are as many of all
 * together. The room beyond is for organizations that have none: those that hang hold one place of it each.
 */
export function createOrganizationConcurrency(
  maxPerOrganization: number,
  queue: InstanceQueue,
): OrganizationConcurrency {
  /** By organization. Entries are removed once they are 0 or empty. */
  const running = new Map<string, number>()
  const deferred = new Map<string, Map<string, InstanceRef>>()

  let runs = 0
  const runningOf = (organizationId: string) => running.get(organizationId) ?? 0
  const freeOf = (organizationId: string) =>
    Math.max(0, (runs < maxPerOrganization ? maxPerOrganization : 1) - runningOf(organizationId))

  function defer(instance: InstanceRef): void {
    const ofOrganization = deferred.get(instance.organizationId) ?? new Map<string, InstanceRef>()
    if (ofOrganization.size >= maxDeferred) return
    deferred.set(instance.organizationId, ofOrganization.set(instance.id, instance))
  }

  function release(organizationId: string): void {
    const left = runningOf(organizationId) - 1
    if (left > 0) running.set(organizationId, left)
    else running.delete(organizationId)
    runs -= 1
    enqueueDeferred()
  }

  /** Of the organization that has waited longest and has room; then its others wait behind those of the rest. */
  function enqueueDeferred(): void {
    for (const [organizationId, ofOrganization] of deferred) {
      const [next] = ofOrganization.values()
      if (!next || freeOf(organizationId) === 0) continue
      ofOrganization.delete(next.id)
      deferred.delete(organizationId)
      if (ofOrganization.size > 0) deferred.set(organizationId, ofOrganization)
      queue.enqueue(next)
      return
    }
  }

  return {
    total: maxPerOrganization + otherOrganizations,
    async run(instance, work) {
      const { organizationId } = instance
      if (freeOf(organizationId) === 0) return defer(instance)
      running.set(organizationId, runningOf(organizationId) + 1)
      runs += 1
      await work().finally(() => release(organizationId))
    },
    sweepQueue() {
      const enqueued = new Map<string, number>()
      return {
        enqueue(instance) {
          const { organizationId, id } = instance
          const free = freeOf(organizationId)
          const ofOrganization = deferred.get(organizationId)
          if (free === 0 && ofOrganization?.has(id)) return // the next release enqueues one of the deferred
          const count = enqueued.get(organizationId) ?? 0
          if (count >= free + maxDeferred - (ofOrganization?.size ?? 0)) return
          enqueued.set(organizationId, count + 1)
          queue.enqueue(instance)
        },
      }
    },
  }
}
