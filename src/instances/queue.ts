export interface InstanceQueue {
  /**
   * Notifies the workers that rows are due; call it after the commit. It names no row: a worker claims the next one.
   * Returns at once and never throws. A lost job costs a delay until the sweep enqueues again.
   */
  enqueue(): void
}
