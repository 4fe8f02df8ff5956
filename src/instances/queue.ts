export interface InstanceQueue {
  /**
   * Tells the workers that rows are due; called after the commit. It does not say which: a worker claims the next one.
   * Returns at once and never throws. A lost job costs a delay: the sweep enqueues again.
   */
  enqueue(): void
}
