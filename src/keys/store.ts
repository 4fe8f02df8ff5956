import { createHash, randomBytes } from 'node:crypto'
import { and, eq, isNull } from 'drizzle-orm'
import { LRUCache } from 'lru-cache'
import type { Db } from '../database/client.ts'
import { apiKeys, organizations } from '../database/schema.ts'
import type { Caller, FindCaller } from '../platform/auth.ts'
import { newId } from '../platform/ids.ts'

/** How long a revoked key may still be taken for valid by a process that has just seen it. */
const cacheMs = 1000
const cachedKeys = 10_000
const shownCharacters = 4

/** A new organization key: the row that remembers it and the key itself, which is shown once and never stored. */
export function issueOrganizationKey(organizationId: string) {
  const prefix = 'chd_org_'
  const key = prefix + randomBytes(32).toString('hex')
  const row = {
    id: newId(),
    organizationId,
    keyHash: createHash('sha256').update(key).digest(),
    keyPrefix: `${key.slice(0, prefix.length + shownCharacters)}....`,
  }
  return { key, row }
}

/** Looks callers up by the hash of their key; remembers each answer, also that there is none, for a second. */
export function findCallerIn(db: Db): FindCaller {
  const cache = new LRUCache<string, { caller: Caller | null }>({ max: cachedKeys, ttl: cacheMs })
  return async (keyHash) => {
    const cached = cache.get(keyHash)
    if (cached) return cached.caller
    const [found] = await db
      .select({ keyId: apiKeys.id, organizationId: apiKeys.organizationId })
      .from(apiKeys)
      .innerJoin(organizations, eq(organizations.id, apiKeys.organizationId))
      .where(and(eq(apiKeys.keyHash, Buffer.from(keyHash, 'base64')), isNull(organizations.deletedAt)))
    cache.set(keyHash, { caller: found ?? null })
    return found ?? null
  }
}
