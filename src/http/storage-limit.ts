import type { FastifyInstance } from 'fastify'
import { LRUCache } from 'lru-cache'
import type { Db } from '#database/client.ts'
import { readStoredBytes, type StoredBytes } from '#database/stored-bytes.ts'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'

/** The bytes that an organization may store; 0 is no limit. */
export interface StorageLimits {
  /** Of all kinds but events. */
  bytes: number
  /** Of events: the oldest are deleted beyond it. */
  eventBytes: number
}

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Whether a request to the route, with this body, stores something that counts under the limit. */
    // biome-ignore lint/suspicious/noExplicitAny: the schema of the route has checked the body
    stores?: (body: any) => boolean
    /**
     * The call ends or deletes something, and does no harm when it is repeated: it works at the limit too. Its answer is
     * then not kept for its `Idempotency-Key`.
     */
    frees?: boolean
  }
  interface FastifyRequest {
    /** The failure of a request that must store something, or its answer, while its organization is at its limit. */
    noRoom: AppError | null
  }
}

export interface StorageLimit {
  /** Throws AppError `storage_limit_reached` for an organization that stores as much as it may. */
  requireRoom(organizationId: string): Promise<void>
}

/** The bytes are added up every second: more often they need not be read. */
const cachedMs = 1000
const maxCached = 10_000

/** The bytes that count under the limit. */
export const usedOf = ({ instances, responses, idempotency_answers: answers }: StoredBytes): number =>
  instances + responses + answers

/**
 * Refuses the requests to all later routes that store something while their organization is at its limit. What came
 * within the last seconds may not be counted yet. Reads, deletes and stops always work.
 */
export function useStorageLimit(app: FastifyInstance, db: Db, { bytes: limit }: StorageLimits): StorageLimit {
  const stored = new LRUCache<string, StoredBytes>({
    max: maxCached,
    ttl: cachedMs,
    fetchMethod: (organizationId) => readStoredBytes(db, organizationId),
  })

  async function faultOf(organizationId: string): Promise<AppError | null> {
    const found = limit === 0 ? undefined : await stored.fetch(organizationId)
    if (!found || usedOf(found) < limit) return null
    return new AppError('storage_limit_reached', texts.storageLimit(found, limit))
  }

  app.decorateRequest('noRoom', null)
  app.addHook('preHandler', async (request) => {
    const { access, stores, idempotency } = request.routeOptions.config
    const isPost = request.method === 'POST' && access !== 'public' && idempotency !== 'none'
    const hasKey = isPost && request.headers['idempotency-key'] !== undefined
    if (!hasKey && !stores?.(request.body)) return
    request.noRoom = await faultOf(request.caller.organizationId)
    // With a key the answer may be stored already: who claims the key looks.
    if (request.noRoom && !hasKey) throw request.noRoom
  })
  return {
    async requireRoom(organizationId) {
      const fault = await faultOf(organizationId)
      if (fault) throw fault
    },
  }
}
