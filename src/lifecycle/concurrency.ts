import type { InstanceQueue, InstanceRef } from '#instances/queue.ts'

/** Instances of one organization that a worker defers; the sweep finds the ones beyond. */
const maxDeferred = 64

/** Shares a worker's concurrency between organizations. */
export interface OrganizationConcurrency {
  /**
   * Runs `work` at once when the instance's organization is below its limit. Otherwise `work` does not run: the
   * instance is deferred, and enqueued again once a run of that organization has ended.
   */
  run(instance: InstanceRef, work: () => Promise<void>): Promise<void>
  /**
   * A queue for one sweep. It drops instances that a worker could not run soon: deferred ones, while their organization
   * is at its limit, and more of one organization than can run or be deferred. They would only keep a slow worker busy.
   */
  sweepQueue(): InstanceQueue
}

/**
 * Limits each organization to `maxPerOrganization` runs at a time. A worker with a concurrency of one more always has
 * room for another organization, even while every run of one organization hangs.
 */
export function createOrganizationConcurrency(
  maxPerOrganization: number,
  queue: InstanceQueue,
): OrganizationConcurrency {
  /** By organization. Entries are removed once they are 0 or empty. */
  const running = new Map<string, number>()
  const deferred = new Map<string, Map<string, InstanceRef>>()

  const runningOf = (organizationId: string) => running.get(organizationId) ?? 0

  function defer(instance: InstanceRef): void {
    const ofOrganization = deferred.get(instance.organizationId) ?? new Map<string, InstanceRef>()
    if (ofOrganization.size >= maxDeferred) return
    deferred.set(instance.organizationId, ofOrganization.set(instance.id, instance))
  }

  function release(organizationId: string): void {
    const left = runningOf(organizationId) - 1
    if (left > 0) running.set(organizationId, left)
    else running.delete(organizationId)
    enqueueDeferred(organizationId)
  }

  function enqueueDeferred(organizationId: string): void {
    const ofOrganization = deferred.get(organizationId)
    const [next] = ofOrganization?.values() ?? []
    if (!ofOrganization || !next) return
    ofOrganization.delete(next.id)
    if (ofOrganization.size === 0) deferred.delete(organizationId)
    queue.enqueue(next)
  }

  return {
    async run(instance, work) {
      const { organizationId } = instance
      if (runningOf(organizationId) >= maxPerOrganization) return defer(instance)
      running.set(organizationId, runningOf(organizationId) + 1)
      await work().finally(() => release(organizationId))
    },
    sweepQueue() {
      const enqueued = new Map<string, number>()
      return {
        enqueue(instance) {
          const { organizationId, id } = instance
          const free = maxPerOrganization - runningOf(organizationId)
          const ofOrganization = deferred.get(organizationId)
          if (free <= 0 && ofOrganization?.has(id)) return // the next release enqueues one of the deferred
          const count = enqueued.get(organizationId) ?? 0
          if (count >= free + maxDeferred - (ofOrganization?.size ?? 0)) return
          enqueued.set(organizationId, count + 1)
          queue.enqueue(instance)
        },
      }
    },
  }
}
