import { sql } from 'drizzle-orm'
import { LRUCache } from 'lru-cache'
import type { Db } from '#database/client.ts'
import { sessionEndUsers } from '#database/usage-schema.ts'
import type { Caller } from '#http/auth.ts'
import type { Logger } from '#platform/log.ts'
import type { SessionRef } from './store/session-history.ts'

const maxKnown = 10_000
/** Another process may have noted another person of the session meanwhile. */
const knownMs = 60_000

/**
 * Notes the person whose client token a turn comes with, for the usage of its session: gateways do not pass it on. Does
 * nothing for other keys. Never throws: a turn does not fail for it.
 */
export type NoteEndUser = (caller: Pick<Caller, 'token'>, session: SessionRef) => Promise<void>

export function createNoteEndUser(db: Db, log: Pick<Logger, 'warn'>): NoteEndUser {
  const known = new LRUCache<string, string>({ max: maxKnown, ttl: knownMs })
  return async ({ token }, { organizationId, instanceId, sessionKey }) => {
    const endUser = token?.endUser?.replaceAll('\0', '').toWellFormed() ?? ''
    const key = `${instanceId} ${sessionKey}`
    if (endUser === '' || known.get(key) === endUser) return
    try {
      await db
        .insert(sessionEndUsers)
        .values({ organizationId, instanceId, session: sessionKey, endUser })
        .onConflictDoUpdate({
          target: [sessionEndUsers.instanceId, sessionEndUsers.session],
          set: { endUser, notedAt: sql`now()` },
        })
      known.set(key, endUser)
    } catch (err) {
      log.warn({ err, instanceId }, 'the end user of a session could not be noted: its usage lacks it')
    }
  }
}
