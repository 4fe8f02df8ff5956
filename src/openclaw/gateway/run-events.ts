import { isObject } from '#openclaw/json.ts'

const maxIdCharacters = 500
const maxTextCharacters = 1000

/** A call of one of the agent's tools has begun or ended. The title may have parts of the call, so it is secret. */
export interface ToolEvent {
  kind: 'tool'
  id: string
  name: string
  title: string | null
  /** A call that was refused, or whose end OpenClaw does not know, is `failed`. */
  status: 'in_progress' | 'completed' | 'failed'
  /** The time at the gateway, in ms since 1970. */
  at: number
}

/**
 * An event of a run, in the terms of OpenClaw 2026.9.6. `runId` is the id of the response of a turn over HTTP, and the
 * idempotency key of a run that was begun by `agent`.
 */
export type RunEvent = { runId: string } & (
  | { kind: 'started' }
  /** A message of the agent has grown: `text` is all of it so far, `itemId` its id. Runs with tools have several. */
  | { kind: 'text'; itemId: string; text: string }
  | ToolEvent
  /** A command waits for an approval, or no longer does. `sessionKey` is the key in OpenClaw's long form, or empty. */
  | { kind: 'approval'; approvalId: string; sessionKey: string }
)

/** The agent may answer in place of its gateway, so the length of texts is limited. */
const cut = (text: string) => text.slice(0, maxTextCharacters).toWellFormed()

function readToolEvent(data: Record<string, unknown>, at: unknown): ToolEvent | null {
  const { kind, phase, toolCallId: id, name, title, status } = data
  if (kind !== 'tool' || (phase !== 'start' && phase !== 'end')) return null
  if (typeof id !== 'string' || id.length > maxIdCharacters || typeof name !== 'string') return null
  if (typeof at !== 'number' || !Number.isSafeInteger(at) || at < 0) return null
  const ended = status === 'completed' ? 'completed' : 'failed'
  return {
    kind,
    id: id.toWellFormed(),
    name: cut(name),
    title: typeof title === 'string' ? cut(title) : null,
    status: phase === 'start' ? 'in_progress' : ended,
    at,
  }
}

/**
 * Reads a frame of the gateway. Returns null for all that is no event of a run. Numbers of events are not read: they
 * have gaps by design, and the texts are cumulative.
 */
export function readRunEvent({ type, event, payload }: Record<string, unknown>): RunEvent | null {
  if (type !== 'event' || event !== 'agent' || !isObject(payload) || !isObject(payload.data)) return null
  const { runId, stream, data, sessionKey } = payload
  if (typeof runId !== 'string') return null
  const { approvalId } = data
  if (stream === 'lifecycle' && typeof approvalId === 'string' && approvalId.length <= maxIdCharacters)
    return { runId, kind: 'approval', approvalId, sessionKey: typeof sessionKey === 'string' ? sessionKey : '' }
  if (stream === 'lifecycle' && (data.phase === 'start' || data.phase === 'model')) return { runId, kind: 'started' }
  const tool = stream === 'item' ? readToolEvent(data, payload.ts) : null
  if (tool) return { runId, ...tool }
  const { itemId, text } = data
  if (stream !== 'assistant' || typeof itemId !== 'string' || typeof text !== 'string') return null
  return { runId, kind: 'text', itemId, text }
}
