import type { Static } from '@sinclair/typebox'
import type { GatewayClient } from '#openclaw/gateway.ts'
import { isObject } from '#openclaw/json.ts'
import { sessionIdOf, sessionKey } from '#openclaw/session-key.ts'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'
import { toMicroseconds } from '#platform/timestamps.ts'
import type { Session, SessionHistory } from './schemas.ts'

type Json = Record<string, unknown>

/** Sessions that the gateway is asked for at once. */
const batch = 100
/** The most that one answer of ours is made from: the next page goes on. */
const maxRounds = 20
/** The most that OpenClaw tells of one message. */
const maxMessageCharacters = 500_000

export interface Page {
  limit: number
  /** How many of the list come before this page, as the gateway counts. */
  offset: number
}

const objects = (value: unknown): Json[] => (Array.isArray(value) ? value.filter(isObject) : [])
const objectOf = (value: unknown): Json => (isObject(value) ? value : {})
/** Null also for a number that no date has: what a gateway tells may be anything. */
const timeOf = (ms: unknown): string | null =>
  typeof ms === 'number' && !Number.isNaN(new Date(ms).getTime()) ? toMicroseconds(new Date(ms)) : null
const next = ({ nextOffset }: Json) =>
  typeof nextOffset === 'number' && Number.isSafeInteger(nextOffset) ? nextOffset : undefined

const toSession = (id: string, { hasActiveRun, totalTokens, updatedAt }: Json): Static<typeof Session> => ({
  id,
  is_active: hasActiveRun === true,
  total_tokens: typeof totalTokens === 'number' && Number.isInteger(totalTokens) ? totalTokens : 0,
  updated_at: timeOf(updatedAt),
})

/**
 * The sessions of the API, the one that changed last first; those of chat channels and the agent's own are passed over.
 * `next` is the offset of the page after this one.
 */
export async function listSessions(gateway: GatewayClient, { limit, offset }: Page) {
  const sessions: Static<typeof Session>[] = []
  let from = offset
  for (let round = 0; round < maxRounds; round += 1) {
    const answer = objectOf(await gateway.call('sessions.list', { limit: batch, offset: from }))
    for (const [i, session] of objects(answer.sessions).entries()) {
      const id = typeof session.key === 'string' ? sessionIdOf(session.key) : null
      if (id === null) continue
      if (sessions.length === limit) return { sessions, next: from + i }
      sessions.push(toSession(id, session))
    }
    const after = next(answer)
    // What stands at the other end may be the agent itself, and lead in circles.
    if (after === undefined || after <= from) return { sessions, next: undefined }
    from = after
  }
  return { sessions, next: from }
}

const textOf = (content: unknown): string =>
  typeof content === 'string'
    ? content
    : objects(content)
        .flatMap(({ type, text }) => (type === 'text' && typeof text === 'string' ? [text] : []))
        .join('\n')

function toMessages(messages: unknown): Static<typeof SessionHistory>['messages'] {
  return objects(messages).flatMap(({ role, content, timestamp }) => {
    const text = textOf(content)
    if ((role !== 'user' && role !== 'assistant') || text === '') return []
    return [{ role, content: text, created_at: timeOf(timestamp) ?? '' }]
  })
}

const notFound = () => new AppError('not_found', texts.sessionNotFound)

/**
 * What was said in a session: a page from the newest backwards, in the order it was said. `next` is the offset of the
 * page with what is older. Throws not_found, but not for `main`, which always exists.
 */
export async function readSession(gateway: GatewayClient, id: string, page: Page) {
  const params = { sessionKey: sessionKey(id), ...page, maxChars: maxMessageCharacters }
  const history = objectOf(await gateway.call('chat.history', params))
  if (id !== 'main' && typeof history.sessionId !== 'string') throw notFound()
  const session = toSession(id, objectOf(history.sessionInfo))
  return { history: { ...session, messages: toMessages(history.messages) }, next: next(history) }
}

/** Empties a session; a turn that is under way fails. Throws not_found, but not for `main`. */
export async function resetSession(gateway: GatewayClient, id: string): Promise<void> {
  const key = sessionKey(id)
  // OpenClaw would create one that there is not.
  if (id !== 'main' && !objectOf(await gateway.call('sessions.describe', { key })).session) throw notFound()
  await gateway.call('sessions.reset', { key })
}

/** Deletes a session; a turn that is under way fails. `main` cannot be deleted and is emptied. Throws not_found. */
export async function deleteSession(gateway: GatewayClient, id: string): Promise<void> {
  if (id === 'main') return resetSession(gateway, id)
  const { deleted } = objectOf(await gateway.call('sessions.delete', { key: sessionKey(id), deleteTranscript: true }))
  if (deleted !== true) throw notFound()
}
