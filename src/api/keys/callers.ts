import { and, eq, inArray, isNull, sql } from 'drizzle-orm'
import { batched } from '#database/batched.ts'
import { cachedFor } from '#database/cached.ts'
import type { Db } from '#database/client.ts'
import { databaseMs } from '#database/clock.ts'
import { apiKeys, organizations } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import type { Caller, FindCaller } from '#http/caller.ts'
import type { Logger } from '#platform/log.ts'
import { createKeyUses, isUseDue } from './last-use.ts'
import { isActive, sessionScopeOf } from './store.ts'

/** Lifetime of the cache: another process accepts a revoked key for under 1 s, including the time of the query. */
const cachedMs = 900
/** While this many queries run, requests wait and share the next one. */
const maxConcurrentQueries = 2

interface FoundCaller {
  caller: Caller
  isSuspended: boolean
  /** The expiry of the key, by the monotonic clock of this process. */
  endsAt: number
}

export interface Callers {
  find: FindCaller
  /** Call it before the answer with the hash of a key before its change, so that this process rereads the key. */
  forget(keyHash: Buffer): void
  /**
   * The database's time in ms since 1970, known once `find` has found a caller. Its error is the duration of the query.
   */
  databaseMs(): number
  /** Writes the pending last uses. Do not call `find` afterwards. */
  close(): Promise<void>
}

/**
 * Finds callers by the hash of their key. Caches each result, including misses, for less than a second from the query
 * on, and never beyond the expiry of the key.
 */
export function createCallers(db: Db, log: Pick<Logger, 'warn'>): Callers {
  const uses = createKeyUses(db, log)
  /** The database's time when `performance.now()` was 0. */
  let databaseOrigin = Number.NaN

  /** Lookups at the same time, such as those of all open connections, share a query. */
  const read = batched(maxConcurrentQueries, async (keyHashes: readonly string[]) => {
    const queriedAt = performance.now()
    const rows = await db
      .select({
        keyHash: apiKeys.keyHash,
        keyId: apiKeys.id,
        organizationId: apiKeys.organizationId,
        permissions: apiKeys.permissions,
        instanceIds: apiKeys.instanceIds,
        sessionIds: apiKeys.sessionIds,
        sessionPrefix: apiKeys.sessionPrefix,
        isSuspended: sql<boolean>`(${organizations.suspendedAt} IS NOT NULL)`,
        msLeft: sql<number | null>`(extract(epoch FROM ${apiKeys.expiresAt} - now()) * 1000)::float8`,
        isUseDue,
        now: databaseMs,
      })
      .from(apiKeys)
      .innerJoin(organizations, eq(organizations.id, apiKeys.organizationId))
      .where(
        and(
          inArray(
            apiKeys.keyHash,
            keyHashes.map((keyHash) => Buffer.from(keyHash, 'base64')),
          ),
          isActive,
          isNull(organizations.deletedAt),
        ),
      )
    const byHash = new Map(rows.map((row) => [row.keyHash.toString('base64'), row]))
    return keyHashes.map((keyHash): FoundCaller | null => {
      const row = byHash.get(keyHash)
      if (!row) return null
      const { isSuspended, msLeft, isUseDue: mustRecordUse, sessionIds, sessionPrefix, now, ...found } = row
      databaseOrigin = now - performance.now()
      const sessions = sessionScopeOf({ sessionIds, sessionPrefix })
      if (mustRecordUse) uses.add(row.keyId)
      const caller = { ...found, keyHash, sessions, token: null }
      return { caller, isSuspended, endsAt: queriedAt + (msLeft ?? Infinity) }
    })
  })

  const callers = cachedFor(cachedMs, read)
  return {
    async find(keyHash) {
      const found = await callers.find(keyHash)
      if (!found || performance.now() >= found.endsAt) return null
      if (found.isSuspended) throw new AppError('organization_suspended', texts.suspended)
      return found.caller
    },
    forget: (keyHash) => callers.forget(keyHash.toString('base64')),
    databaseMs: () => databaseOrigin + performance.now(),
    close: () => uses.close(),
  }
}
