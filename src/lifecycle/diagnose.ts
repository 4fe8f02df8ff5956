import { probeHealth } from '#openclaw/health.ts'
import { poll } from '#platform/poll.ts'
import type { Activity } from '#sandbox/driver.ts'
import { isAnswering } from './health.ts'
import { again, type StepContext } from './step.ts'

/** Between the looks at a gateway that does not answer and lives: short, so that it is soon settled again. */
export const nextLookSeconds = 10
export const busyAgain = again(nextLookSeconds, 'The gateway is busy, and answers when its work lets it.')

const lookPauseMs = 1000
const patientTimeoutMs = 5000
/** The processor time, in seconds, that is more than the ticking of idle threads. */
const leastWork = 0.1
/** The share of a processor from which on an event loop that turns is too busy to answer. */
const busyShare = 0.5

/**
 * Watches a gateway that does not answer. Returns the latest activity of one that is busy: it computes, or waits for a
 * program that does. `unreachable`: its event loop turns, so the way to it is broken. `hung`: none of both for a time,
 * or it has ended.
 */
export async function diagnose(context: StepContext): Promise<'answering' | 'unreachable' | 'hung' | Activity> {
  const { lease, sandboxes, timeouts, signal } = context
  const { id } = lease.instance
  const startedAt = performance.now()
  let first = await sandboxes.activity(id, signal)
  const diagnosis = await poll(
    async () => {
      const seen = await sandboxes.observe(id, signal)
      if (seen.state === 'stopped') return 'hung'
      if (await isAnswering(context, seen)) return 'answering'
      const activity = await sandboxes.activity(id, signal)
      first ??= activity
      if (!activity || !first) return null
      const seconds = (performance.now() - startedAt) / 1000
      const worked = activity.cpuSeconds - first.cpuSeconds
      if (activity.switches === first.switches) return worked >= leastWork ? activity : null
      const options = { timeoutMs: patientTimeoutMs, signal }
      if (seen.endpoint && (await probeHealth(seen.endpoint, '/healthz', options))) return 'answering'
      return worked >= Math.max(leastWork, busyShare * seconds) ? activity : 'unreachable'
    },
    { pauseMs: lookPauseMs, timeoutMs: timeouts.hungMs, signal },
  )
  return diagnosis ?? 'hung'
}
