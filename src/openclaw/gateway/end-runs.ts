import { isObject } from '#openclaw/json.ts'
import type { GatewayClient } from './gateway.ts'

const callTimeoutMs = 5000
const batchSize = 100
/** Sessions are sorted by their last change, so those with a run are among the first. */
const maxBatches = 5

/**
 * Ends the runs of all sessions of an agent and the messages queued behind them, including those of chat channels.
 * Returns the number of sessions with a run. Throws the errors of `call`.
 */
export async function endRuns(gateway: GatewayClient): Promise<number> {
  let ended = 0
  for (let batch = 0; batch < maxBatches; batch += 1) {
    const params = { limit: batchSize, offset: batch * batchSize }
    const answer = await gateway.call('sessions.list', params, { timeoutMs: callTimeoutMs })
    const sessions = isObject(answer) && Array.isArray(answer.sessions) ? answer.sessions.filter(isObject) : []
    for (const { key, hasActiveRun } of sessions) {
      if (hasActiveRun !== true || typeof key !== 'string') continue
      await gateway.call('sessions.abort', { key, clearQueued: true }, { timeoutMs: callTimeoutMs })
      ended += 1
    }
    if (sessions.length < batchSize) break
  }
  return ended
}
