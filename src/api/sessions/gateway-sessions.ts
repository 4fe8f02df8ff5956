import type { Static } from '@sinclair/typebox'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import type { GatewayClient } from '#openclaw/gateway/gateway.ts'
import { GatewayRefusal } from '#openclaw/gateway/gateway-errors.ts'
import { sessionIdOf, sessionKey } from '#openclaw/gateway/session-key.ts'
import { isObject } from '#openclaw/json.ts'
import { toMicroseconds } from '#platform/timestamps.ts'
import type { Session, SessionHistory } from './schemas.ts'

type Json = Record<string, unknown>

/** The number of sessions in one call of the gateway. */
const batchSize = 100
/** The limit of calls for one page: beyond it the page has fewer sessions, and the next page continues. */
const maxCalls = 20
/** The largest text of a message that OpenClaw returns. */
const maxMessageCharacters = 500_000

export interface Page {
  limit: number
  /** The number of entries before this page, as the gateway counts them. */
  offset: number
}

const objectsIn = (value: unknown): Json[] => (Array.isArray(value) ? value.filter(isObject) : [])
const asObject = (value: unknown): Json => (isObject(value) ? value : {})
/** null for a value that is not a time: the agent may answer in place of its gateway. */
const timestampOf = (ms: unknown): string | null =>
  typeof ms === 'number' && !Number.isNaN(new Date(ms).getTime()) ? toMicroseconds(new Date(ms)) : null
const nextOffsetOf = ({ nextOffset }: Json): number | undefined =>
  typeof nextOffset === 'number' && Number.isSafeInteger(nextOffset) ? nextOffset : undefined

const toSession = (id: string, { hasActiveRun, totalTokens, updatedAt }: Json): Static<typeof Session> => ({
  id,
  is_active: hasActiveRun === true,
  total_tokens: typeof totalTokens === 'number' && Number.isInteger(totalTokens) ? totalTokens : 0,
  updated_at: timestampOf(updatedAt),
})

/**
 * The sessions of the API that pass `isShown`, the latest change first, without those of chat channels and the agent's
 * own. `next` is the offset of the next page.
 */
export async function listSessions(gateway: GatewayClient, { limit, offset }: Page, isShown: (id: string) => boolean) {
  const sessions: Static<typeof Session>[] = []
  let from = offset
  for (let calls = 0; calls < maxCalls; calls += 1) {
    const answer = asObject(await gateway.call('sessions.list', { limit: batchSize, offset: from }))
    for (const [index, session] of objectsIn(answer.sessions).entries()) {
      const id = typeof session.key === 'string' ? sessionIdOf(session.key) : null
      if (id === null || !isShown(id)) continue
      if (sessions.length === limit) return { sessions, next: from + index }
      sessions.push(toSession(id, session))
    }
    const next = nextOffsetOf(answer)
    // The agent may answer in place of its gateway: its offsets must not cause an endless loop.
    if (next === undefined || next <= from) return { sessions, next: undefined }
    from = next
  }
  return { sessions, next: from }
}

const textOf = (content: unknown): string =>
  typeof content === 'string'
    ? content
    : objectsIn(content)
        .flatMap(({ type, text }) => (type === 'text' && typeof text === 'string' ? [text] : []))
        .join('\n')

function toMessages(messages: unknown): Static<typeof SessionHistory>['messages'] {
  return objectsIn(messages).flatMap(({ role, content, timestamp }) => {
    const text = textOf(content)
    if ((role !== 'user' && role !== 'assistant') || text === '') return []
    return [{ role, content: text, created_at: timestampOf(timestamp) }]
  })
}

const notFound = () => new AppError('session_not_found', texts.sessionNotFound)

/**
 * A session with one page of its messages: the first page holds the newest ones, each page in ascending order. `next`
 * is the offset of the page with older messages. Throws not_found, except for `main`, which always exists.
 */
export async function readSession(gateway: GatewayClient, id: string, page: Page) {
  const params = { sessionKey: sessionKey(id), ...page, maxChars: maxMessageCharacters }
  const history = asObject(await gateway.call('chat.history', params))
  if (id !== 'main' && typeof history.sessionId !== 'string') throw notFound()
  const session = toSession(id, asObject(history.sessionInfo))
  return { history: { ...session, messages: toMessages(history.messages) }, next: nextOffsetOf(history) }
}

/** OpenClaw's refusals while another call resets or deletes the session. */
const changedMeanwhile = /has another lifecycle mutation in progress|changed before deletion/

/** A call that changes a session. Throws AppError `resource_busy` while another one does. */
const change = (gateway: GatewayClient, method: string, params: Json): Promise<unknown> =>
  gateway.call(method, params).catch((cause: unknown) => {
    if (!(cause instanceof GatewayRefusal && changedMeanwhile.test(cause.message))) throw cause
    throw new AppError('resource_busy', texts.sessionChanging, { cause, retryAfterSeconds: 1 })
  })

/** Deletes the messages of a session; a running turn fails. Throws not_found, except for `main`, and resource_busy. */
export async function resetSession(gateway: GatewayClient, id: string): Promise<void> {
  const key = sessionKey(id)
  // OpenClaw would create a missing session.
  if (id !== 'main' && !asObject(await gateway.call('sessions.describe', { key })).session) throw notFound()
  await change(gateway, 'sessions.reset', { key })
}

/** Deletes a session; a running turn fails. `main` cannot be deleted and is reset. Throws not_found, resource_busy. */
export async function deleteSession(gateway: GatewayClient, id: string): Promise<void> {
  if (id === 'main') return resetSession(gateway, id)
  const { deleted } = asObject(
    await change(gateway, 'sessions.delete', { key: sessionKey(id), deleteTranscript: true }),
  )
  if (deleted !== true) throw notFound()
}
