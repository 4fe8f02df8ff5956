import { isObject } from '#openclaw/json.ts'

/**
 * An event of a run, in the terms of OpenClaw 2026.9.6. `runId` is the id of the response of a turn over HTTP, and the
 * idempotency key of a run that was begun by `agent`.
 */
export type RunEvent = { runId: string } & (
  | { kind: 'started' }
  /** A message of the agent has grown: `text` is all of it so far, `itemId` its id. Runs with tools have several. */
  | { kind: 'text'; itemId: string; text: string }
)

/**
 * Reads a frame of the gateway. Returns null for all that is no event of a run. Numbers of events are not read: they
 * have gaps by design, and the texts are cumulative.
 */
export function readRunEvent({ type, event, payload }: Record<string, unknown>): RunEvent | null {
  if (type !== 'event' || event !== 'agent' || !isObject(payload) || !isObject(payload.data)) return null
  const { runId, stream, data } = payload
  if (typeof runId !== 'string') return null
  if (stream === 'lifecycle' && (data.phase === 'start' || data.phase === 'model')) return { runId, kind: 'started' }
  const { itemId, text } = data
  if (stream !== 'assistant' || typeof itemId !== 'string' || typeof text !== 'string') return null
  return { runId, kind: 'text', itemId, text }
}
