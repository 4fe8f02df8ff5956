import { isObject } from '#openclaw/json.ts'
import type { GatewayClient } from './gateway.ts'

const callTimeoutMs = 20_000
/** `agent.wait` answers at once when the run ends, and otherwise after this time. */
const waitForRunMs = 30_000
/** The rows of a session that are searched for those of a run. A run with more has fewer tokens in its usage. */
const historyLimit = 200

/** A run to begin. Its id is its idempotency key. */
export interface RunRequest {
  message: string
  sessionKey: string
  extraSystemPrompt?: string
  provider?: string
  model?: string
  attachments?: { type: 'image'; mimeType: string; fileName: string; content: string }[]
  /** The longest time that OpenClaw gives the run, in seconds. */
  timeout: number
}

/** The tokens of all model calls of a run. */
interface RunUsage {
  input: number
  output: number
  cacheRead: number
  cacheWrite: number
}

/** The end of a run, as its session shows it. */
export interface RunEnd {
  status: 'completed' | 'incomplete' | 'failed'
  /** All that the agent said, in the order of its messages. */
  text: string
  lastMessage: string
  /** Null when the gateway reports none. */
  usage: RunUsage | null
}

/**
 * The state of a run in its session. `unknown`: there is no trace of it. `interrupted`: it has begun, does not run, and
 * has no end, because its gateway ended. `runId` is the run that goes on in its place after that, otherwise its own.
 */
export type RunState = { runId: string } & (
  | { kind: 'running' | 'unknown' | 'interrupted' }
  | { kind: 'ended'; end: RunEnd }
)

/** OpenClaw goes on with a run of this id after the end of its gateway (forget-runs.mjs). */
export const resumedRunId = (id: string): string => `${id}:resume`

/**
 * Begins a run, which goes on when the connection closes. The gateway does not begin it again while it runs, nor for
 * some minutes after its end; after a restart of the gateway it does, so read its state first. Throws the errors of
 * `call`.
 */
export async function beginRun(gateway: GatewayClient, runId: string, request: RunRequest): Promise<void> {
  await gateway.call('agent', { ...request, idempotencyKey: runId, deliver: false }, { timeoutMs: callTimeoutMs })
}

/** Waits up to half a minute for the end of a run. Returns whether it has ended; false as well for an unknown run. */
export async function waitForRun(gateway: GatewayClient, runId: string): Promise<boolean> {
  const answer = await gateway.call(
    'agent.wait',
    { runId, timeoutMs: waitForRunMs },
    { timeoutMs: waitForRunMs + callTimeoutMs },
  )
  return isObject(answer) && (answer.status !== 'timeout' || answer.endedAt !== undefined)
}

/** Ends a run, or takes it out of the line of its session. An unknown or ended one is no error. */
export async function abortRun(gateway: GatewayClient, sessionKey: string, runId: string): Promise<void> {
  await gateway.call('chat.abort', { sessionKey, runId }, { timeoutMs: callTimeoutMs })
}

const list = (value: unknown): Record<string, unknown>[] => (Array.isArray(value) ? value.filter(isObject) : [])
const count = (value: unknown): number =>
  typeof value === 'number' && Number.isInteger(value) && value > 0 ? value : 0

const textOf = ({ role, content }: Record<string, unknown> = {}): string =>
  role === 'assistant'
    ? list(content)
        .map(({ type, text }) => (type === 'text' && typeof text === 'string' ? text : ''))
        .join('')
    : ''

function usageOf(rows: Record<string, unknown>[]): RunUsage | null {
  const used = rows.flatMap(({ usage }) => (isObject(usage) ? [usage] : []))
  const sum = (name: keyof RunUsage) => used.reduce((total, usage) => total + count(usage[name]), 0)
  const usage = {
    input: sum('input'),
    output: sum('output'),
    cacheRead: sum('cacheRead'),
    cacheWrite: sum('cacheWrite'),
  }
  return Object.values(usage).some((tokens) => tokens > 0) ? usage : null
}

/** The status of a run by its last row; null while it has no end. */
function statusOf(last: Record<string, unknown> | undefined): RunEnd['status'] | null {
  if (last?.role === 'custom') return 'failed'
  if (last?.role !== 'assistant' || last.stopReason === 'toolUse') return null
  if (last.stopReason === 'stop') return 'completed'
  return last.stopReason === 'length' ? 'incomplete' : 'failed'
}

const userKeyEnd = ':user'
/** The key of a row of the user; empty for all other rows. */
const userKey = ({ idempotencyKey: key }: Record<string, unknown>): string =>
  typeof key === 'string' && key.endsWith(userKeyEnd) ? key : ''

/** The id of the run that OpenClaw began to go on with an interrupted one; null without one. */
function recoveryOf(all: Record<string, unknown>[], runId: string): string | null {
  const later = all.slice(all.findIndex((row) => userKey(row) === runId + userKeyEnd) + 1)
  const next = later.find((row) => userKey(row) !== '')
  if (!isObject(next?.provenance) || next.provenance.sourceTool !== 'main_session_restart_recovery') return null
  return userKey(next).slice(0, -userKeyEnd.length)
}

/**
 * Reads the state of a run from its session, which outlives the gateway. The text is that of the run that went on.
 * Throws the errors of `call`.
 */
export async function readRun(gateway: GatewayClient, sessionKey: string, id: string): Promise<RunState> {
  const params = { sessionKey, limit: historyLimit }
  const answer = await gateway.call('chat.history', params, { timeoutMs: callTimeoutMs })
  const { messages, inFlightRun, sessionInfo, pendingInputs } = isObject(answer) ? answer : {}
  const all = list(messages)
  const hasUserRow = all.some((row) => userKey(row) === id + userKeyEnd)
  const runId = (hasUserRow && recoveryOf(all, id)) || id
  const { hasActiveRun, activeRunIds } = isObject(sessionInfo) ? sessionInfo : {}
  const pending = list(isObject(pendingInputs) ? pendingInputs.items : null).find((item) => item.runId === runId)
  const isActive =
    (isObject(inFlightRun) && inFlightRun.runId === runId) ||
    (Array.isArray(activeRunIds) && activeRunIds.includes(runId)) ||
    (hasActiveRun === true && pending?.state === 'queued')
  if (isActive) return { runId, kind: 'running' }
  const rowsOf = (of: string) => all.filter((row) => isObject(row.__openclaw) && row.__openclaw.runId === of)
  const rows = rowsOf(runId)
  const status = statusOf(rows.at(-1))
  if (status !== null) {
    const usage = usageOf(runId === id ? rows : [...rowsOf(id), ...rows])
    const end = { status, text: rows.map((row) => textOf(row)).join(''), lastMessage: textOf(rows.at(-1)), usage }
    return { runId, kind: 'ended', end }
  }
  const hasTrace = rows.length > 0 || pending !== undefined || hasUserRow
  return { runId, kind: hasTrace ? 'interrupted' : 'unknown' }
}
