import { randomUUID } from 'node:crypto'
import { type FakeGateway, Refusal } from './fake-gateway.ts'

type Json = Record<string, unknown>

interface Session {
  sessionId: string
  updatedAt: number
  messages: Json[]
}

/** The sessions of a fake gateway by their full keys. Tests add sessions to it. */
export type FakeSessions = Map<string, Session>

const newSession = (messages: Json[] = []): Session => ({ sessionId: randomUUID(), updatedAt: Date.now(), messages })
const fullKey = (key: unknown) => (String(key).startsWith('agent:') ? String(key) : `agent:main:${key}`)

const mainCannotBeDeleted = () =>
  new Refusal({ code: 'INVALID_REQUEST', message: 'Cannot delete the main session (agent:main:main).' })

/** Adds the methods `sessions.*` and `chat.history` to a fake gateway, in shapes recorded from OpenClaw 2026.9.6. */
export function addSessions(gateway: FakeGateway): FakeSessions {
  const sessions: FakeSessions = new Map()
  const rowOf = (key: string, session?: Session): Json => ({
    key,
    kind: 'direct',
    agentId: 'main',
    updatedAt: session?.updatedAt ?? null,
    hasActiveRun: false,
    ...(session && { sessionId: session.sessionId, totalTokens: 100 * session.messages.length }),
  })
  Object.assign(gateway.methods, {
    'sessions.list': ({ limit = 100, offset = 0 }: { limit?: number; offset?: number }) => {
      const all = [...sessions].sort(([, a], [, b]) => b.updatedAt - a.updatedAt)
      const hasMore = all.length > offset + limit
      return {
        totalCount: all.length,
        sessions: all.slice(offset, offset + limit).map(([key, session]) => rowOf(key, session)),
        nextOffset: hasMore ? offset + limit : null,
        hasMore,
      }
    },
    'chat.history': ({
      sessionKey,
      limit = 200,
      offset = 0,
    }: {
      sessionKey: string
      limit?: number
      offset?: number
    }) => {
      const session = sessions.get(fullKey(sessionKey))
      const messages = session?.messages ?? []
      const end = Math.max(0, messages.length - offset)
      const start = Math.max(0, end - limit)
      return {
        sessionKey,
        ...(session && { sessionId: session.sessionId }),
        messages: messages.slice(start, end),
        totalMessages: messages.length,
        hasMore: start > 0,
        ...(start > 0 && { nextOffset: messages.length - start }),
        sessionInfo: rowOf(fullKey(sessionKey), session),
      }
    },
    'sessions.describe': ({ key }: { key: string }) => {
      const session = sessions.get(fullKey(key))
      return { session: session ? rowOf(fullKey(key), session) : null }
    },
    'sessions.reset': ({ key }: { key: string }) => {
      const reset = { role: 'system', content: [{ type: 'text', text: 'Reset' }], timestamp: Date.now() }
      sessions.set(fullKey(key), newSession([reset]))
      return { ok: true, key: fullKey(key) }
    },
    'sessions.delete': ({ key }: { key: string }) => {
      if (fullKey(key) === 'agent:main:main') throw mainCannotBeDeleted()
      return { ok: true, key: fullKey(key), deleted: sessions.delete(fullKey(key)), archived: [] }
    },
  })
  return sessions
}
