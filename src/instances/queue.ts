import { instances } from '#database/schema.ts'

/** Names a row that is due. A generation and lease token get one job: `lifecycle/queue.ts` says why. */
export interface InstanceRef {
  id: string
  organizationId: string
  generation: number
  leaseToken: number
}

/** The columns of an InstanceRef, for a SELECT or RETURNING. */
export const instanceRefColumns = {
  id: instances.id,
  organizationId: instances.organizationId,
  generation: instances.generation,
  leaseToken: instances.leaseToken,
}

export interface InstanceQueue {
  /**
   * Tells the workers that a row is due; called after the commit. Returns at once and never throws. A lost job costs a
   * delay: the sweep enqueues the row again.
   */
  enqueue(row: InstanceRef): void
}
