import { probeHealth } from '#openclaw/gateway/health.ts'
import { poll } from '#platform/poll.ts'
import type { Activity } from '#sandbox/driver.ts'
import { isAnswering } from './health.ts'
import { again, type StepContext } from './step.ts'

/** Pause between checks of a gateway that lives but does not answer: short, so that it settles soon. */
export const busyPauseSeconds = 10
export const busyAgain = again(busyPauseSeconds, 'The gateway is busy, and answers when its work lets it.')

const pollMs = 1000
const patientTimeoutMs = 5000
/** CPU seconds that exceed the ticking of idle threads. */
const leastWork = 0.1
/** CPU share above which a working event loop is too busy to answer. */
const busyShare = 0.5

/**
 * Watches a gateway that does not answer. Returns the latest activity of a busy one, which computes or waits for a
 * program that computes. `unreachable`: its event loop works, so the network is broken. `hung`: no activity for a time,
 * or the gateway has ended.
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
    { pauseMs: pollMs, timeoutMs: timeouts.hungMs, signal },
  )
  return diagnosis ?? 'hung'
}
