import { and, eq, isNull, sql } from 'drizzle-orm'
import { LRUCache } from 'lru-cache'
import type { Db } from '#database/client.ts'
import { apiKeys, organizations } from '#database/schema.ts'
import type { Caller, FindCaller } from '#http/auth.ts'
import { AppError } from '#platform/errors.ts'
import type { Logger } from '#platform/log.ts'
import { texts } from '#platform/texts.ts'
import { createKeyUses, isUseDue } from './last-use.ts'
import { isActive } from './store.ts'

/** How long a process that has just seen a key may take it for valid after it was revoked: with the asking, under 1 s. */
const rememberedMs = 900
const rememberedKeys = 10_000

interface Found {
  caller: Caller
  isDisabled: boolean
  /** When the key expires, by this process's monotonic clock. */
  endsAt: number
}

export interface Callers {
  find: FindCaller
  /** To be called with a key's hash once the key was changed and before that is answered: this process knows at once. */
  forget(keyHash: Buffer): void
  /** Writes down the last uses. Nobody may be looked for any more. */
  close(): Promise<void>
}

/**
 * Looks callers up by the hash of their key. Remembers each answer, also that there is none, for less than a second from
 * the asking on, and no key beyond its expiry.
 */
export function createCallers(db: Db, log: Pick<Logger, 'warn'>): Callers {
  const cache = new LRUCache<string, Promise<Found | null>>({ max: rememberedKeys, ttl: rememberedMs })
  const uses = createKeyUses(db, log)

  async function look(keyHash: string): Promise<Found | null> {
    const askedAt = performance.now()
    const [row] = await db
      .select({
        keyId: apiKeys.id,
        organizationId: apiKeys.organizationId,
        permissions: apiKeys.permissions,
        instanceIds: apiKeys.instanceIds,
        disabledAt: organizations.disabledAt,
        msLeft: sql<number | null>`(extract(epoch FROM ${apiKeys.expiresAt} - now()) * 1000)::float8`,
        isUseDue,
      })
      .from(apiKeys)
      .innerJoin(organizations, eq(organizations.id, apiKeys.organizationId))
      .where(and(eq(apiKeys.keyHash, Buffer.from(keyHash, 'base64')), isActive, isNull(organizations.deletedAt)))
    if (!row) return null
    const { disabledAt, msLeft, isUseDue: isToBeWritten, ...found } = row
    if (isToBeWritten) uses.add(row.keyId)
    return { caller: { ...found, keyHash }, isDisabled: disabledAt !== null, endsAt: askedAt + (msLeft ?? Infinity) }
  }

  return {
    async find(keyHash) {
      let looking = cache.get(keyHash)
      if (!looking) {
        looking = look(keyHash)
        cache.set(keyHash, looking)
        looking.catch(() => cache.delete(keyHash))
      }
      const found = await looking
      if (!found || performance.now() >= found.endsAt) return null
      if (found.isDisabled) throw new AppError('forbidden', texts.disabled)
      return found.caller
    },
    forget: (keyHash) => void cache.delete(keyHash.toString('base64')),
    close: () => uses.close(),
  }
}
