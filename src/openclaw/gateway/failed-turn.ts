import { setTimeout as sleep } from 'node:timers/promises'
import { findUsedUp } from '#errors/budget-texts.ts'
import { isObject } from '#openclaw/json.ts'
import type { Endpoint } from '#sandbox/driver.ts'
import { connectGateway } from './gateway.ts'

/** A gateway on a busy host takes seconds. Without its answer, the client is advised not to repeat the turn. */
const timeoutMs = 10_000
/** How often the session of a turn that left no reason is read, and how soon again. */
const maxReads = 20
const readAgainMs = 300

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

/** The session's last entry mentions only a rate limit; the budget is in the error of the run. */
function usedUpBudget(history: unknown): string | null {
  const info = isObject(history) && isObject(history.sessionInfo) ? history.sessionInfo : {}
  return typeof info.lastRunError === 'string' ? findUsedUp(info.lastRunError) : null
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
      const read = async () => {
        const answer = await gateway.call('chat.history', { sessionKey, limit: 2 }, { timeoutMs })
        return {
          answer,
          messages: isObject(answer) && Array.isArray(answer.messages) ? answer.messages.filter(isObject) : [],
        }
      }
      let { answer, messages } = await read()
      // A deletion ends the turn first, and takes its question away a moment later. OpenClaw notes some failures in an
      // entry of the user, after the question.
      const isQuestion = () => messages.at(-1)?.role === 'user' && messages.at(-2)?.role !== 'user'
      for (let reads = 1; reads < maxReads && isQuestion(); reads += 1) {
        await sleep(readAgainMs, undefined, { signal })
        ;({ answer, messages } = await read())
      }
      const [said, failed] = messages.slice(-2)
      const isUntouched = said?.role === 'user' && failed?.role === 'assistant' && failed.stopReason === 'error'
      const isSessionGone = isObject(answer) && messages.every(({ role }) => role === 'system')
      return { isSessionGone, hasActed: !isUntouched, note: usedUpBudget(answer) ?? textOf(messages.at(-1)?.content) }
    } finally {
      gateway.close()
    }
  } catch {
    signal.throwIfAborted()
    return { hasActed: true, note: null, isSessionGone: false }
  }
}
