import type { LifecycleDeps } from '#lifecycle/attempt/reconcile.ts'
import type { PeriodicTask } from '#platform/periodic.ts'
import { SandboxUnavailableError } from '#sandbox/driver.ts'

const everyMs = 60_000
/** Longer than the driver's limit for the container that adds rules. */
const timeoutMs = 70_000

/** Restores missing firewall rules that keep agents from their platform, and logs a warning when any were missing. */
export const firewallTask = ({ sandboxes, log }: Pick<LifecycleDeps, 'sandboxes' | 'log'>): PeriodicTask => ({
  name: 'check_firewall',
  everyMs,
  timeoutMs,
  async run(signal) {
    try {
      if (await sandboxes.protect?.(signal)) {
        log.warn('firewall rules of agents were missing on the host of dockerd, and have been added again')
      }
    } catch (error) {
      if (error instanceof SandboxUnavailableError && error.isLogged) return
      throw error
    }
  },
})
