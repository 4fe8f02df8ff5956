/** What a bell needs to know of a row: one job an intent and take, see `lifecycle/queue.ts`. */
export interface InstanceRef {
  id: string
  organizationId: string
  generation: number
  leaseToken: number
}

/**
 * Tells the workers that a row is due. Best effort: it never throws and returns at once; a lost bell costs a delay,
 * because the sweep rings again.
 */
export interface InstanceQueue {
  enqueue(row: InstanceRef): void
}
