import { findUsedUp } from '#errors/budget-texts.ts'
import { isObject } from '#openclaw/json.ts'
import { poll } from '#platform/poll.ts'
import type { Endpoint } from '#sandbox/driver.ts'
import { connectGateway, type GatewayClient } from './gateway.ts'

/** A gateway on a busy host takes seconds. Without its answer, the client is advised not to repeat the turn. */
const timeoutMs = 10_000
/** How long a session may show the question of a failed turn and no reason. On a busy host a deletion takes seconds. */
const reasonMs = 6000
const pauseMs = 300

/** The traces of a failed turn in its session. */
export interface FailedTurn {
  /** Whether it left an answer or a call of a tool, or may have. */
  hasActed: boolean
  /** OpenClaw's reason for the failure in the session; null when it cannot be read. */
  note: string | null
  /** Whether the session was reset or deleted: nothing of the turn is in it, not even its question. */
  isSessionGone: boolean
}

const textOf = (content: unknown): string =>
  typeof content === 'string'
    ? content
    : (Array.isArray(content) ? content : [])
        .map((part: unknown) => (isObject(part) && typeof part.text === 'string' ? part.text : ''))
        .join('\n')

/** OpenClaw's message for a model call without an answer, or whose answer broke off. */
export const modelCallBroke = /^LLM request (?:timed out|failed: network connection error)/

/** A reason that is in the error of the run and not in the session's last entry. */
function errorOfRun(history: unknown): string | null {
  const info = isObject(history) && isObject(history.sessionInfo) ? history.sessionInfo : {}
  if (typeof info.lastRunError !== 'string') return null
  return findUsedUp(info.lastRunError) ?? (modelCallBroke.test(info.lastRunError) ? info.lastRunError : null)
}

/**
 * The last two entries of a session; null while the last one is the question of the turn, without a reason. OpenClaw notes some failures
 * in an entry of the user, after the question.
 */
async function readEnd(gateway: GatewayClient, sessionKey: string) {
  const answer = await gateway.call('chat.history', { sessionKey, limit: 2 }, { timeoutMs })
  const messages = isObject(answer) && Array.isArray(answer.messages) ? answer.messages.filter(isObject).slice(-2) : []
  const [last, before] = messages.toReversed()
  const isQuestion = last?.role === 'user' && before?.role !== 'user'
  return isQuestion && errorOfRun(answer) === null ? null : { answer, messages }
}

/** Reads the end of the session of a turn that has just failed. Throws only the signal's reason. */
export async function readFailedTurn(
  { endpoint, token }: { endpoint: Endpoint; token: string },
  sessionKey: string,
  signal: AbortSignal,
): Promise<FailedTurn> {
  try {
    const gateway = await connectGateway(endpoint, token, { signal, timeoutMs })
    try {
      // A deletion ends the turn first, and takes its question away a moment later.
      const history = await poll(() => readEnd(gateway, sessionKey), { pauseMs, timeoutMs: reasonMs, signal })
      const { answer = null, messages = [] } = history ?? {}
      const [said, failed] = messages
      const isUntouched = said?.role === 'user' && failed?.role === 'assistant' && failed.stopReason === 'error'
      const isSessionGone = isObject(answer) && messages.every(({ role }) => role === 'system')
      return { isSessionGone, hasActed: !isUntouched, note: errorOfRun(answer) ?? textOf(messages.at(-1)?.content) }
    } finally {
      gateway.close()
    }
  } catch {
    signal.throwIfAborted()
    return { hasActed: true, note: null, isSessionGone: false }
  }
}
