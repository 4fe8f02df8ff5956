import type { RunningGateway } from '#instances/find.ts'
import { connectGateway } from '#openclaw/gateway.ts'
import { isObject } from '#openclaw/json.ts'

const askTimeoutMs = 5000
/** OpenClaw tells of an error that it may still recover from only after a wait. */
const waitMs = 50

/**
 * Whether OpenClaw has begun a run that failed, and so may have asked the model. It tells the start of every run that
 * it began, by the run's id, for 10 minutes after the end. A turn that fails while it is prepared, as when another one
 * changes its session at the same moment, has no start. True whenever this is not certain.
 */
export async function hasBegun(
  { endpoint, token }: RunningGateway,
  runId: string,
  signal: AbortSignal,
): Promise<boolean> {
  try {
    const limited = AbortSignal.any([signal, AbortSignal.timeout(askTimeoutMs)])
    const gateway = await connectGateway(endpoint, token, { signal: limited, timeoutMs: askTimeoutMs })
    try {
      const run = await gateway.call('agent.wait', { runId, timeoutMs: waitMs }, { timeoutMs: askTimeoutMs })
      const isUnknown = isObject(run) && run.runId === runId && run.status === 'timeout'
      return !isUnknown || run.startedAt !== undefined || run.timeoutPhase !== undefined
    } finally {
      gateway.close()
    }
  } catch {
    return true
  }
}
