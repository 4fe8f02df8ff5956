import { hash } from 'node:crypto'
import rateLimit from '@fastify/rate-limit'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { Redis } from 'ioredis'
import { LRUCache } from 'lru-cache'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import type { Caller } from './caller.ts'
import { instanceIdOf } from './instance-params.ts'

/** The allowed numbers of requests; 0 means no limit. */
export interface RateLimits {
  /** Requests with one key, per minute. */
  requestsPerMinute: number
  /** Requests with all keys of one organization, per minute. */
  organizationRequestsPerMinute: number
  /** New organizations from one address, per hour. */
  signupsPerHour: number
  /** Requests without a valid key from one address, per minute. Requests with a valid key do not count. */
  failedAuthPerMinute: number
  /** The Redis that all processes count in. Without it, each process counts alone. */
  redis: Redis | null
}

/** Chowder's limits, from the requests per minute of one key; none if that is 0. */
export const rateLimits = (requestsPerMinute: number, redis: Redis | null): RateLimits => ({
  requestsPerMinute,
  organizationRequestsPerMinute: 5 * requestsPerMinute,
  signupsPerHour: requestsPerMinute === 0 ? 0 : 100,
  failedAuthPerMinute: requestsPerMinute === 0 ? 0 : 60,
  redis,
})

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Each valid request to the route counts as a signup of its address. */
    isSignup?: boolean
  }
}

/** Counts a request and sets the headers of its answer. Throws AppError `rate_limited` above the limit. */
export type CountRequest = (request: FastifyRequest, reply: FastifyReply) => Promise<void>

const rememberedWindows = 10_000
const minute = 60
const hour = 60 * minute
/** Each is a request to a model provider, which must not be flooded or used to guess keys. */
const keyTestsPerMinute = 20
/** Each starts OpenClaw's command line in the sandbox, and may guess a code. */
const pairingsPerMinute = 10
/** Each is a request to the registry of skills from this server's address. */
const skillSearchesPerMinute = 10
/** A request waits this long for Redis, and then passes. */
const redisCommandTimeoutMs = 50
const redisConnectTimeoutMs = 2000
const redisReconnectPauseMs = 1000

/** Counts in this process, by the monotonic clock: a system clock that is set back would lock callers out. */
class MemoryStore {
  readonly #windows = new LRUCache<string, { count: number; endsAt: number }>({ max: rememberedWindows })

  incr(key: string, callback: (error: null, result: { current: number; ttl: number }) => void, windowMs: number): void {
    const now = performance.now()
    let window = this.#windows.get(key)
    if (!window || window.endsAt <= now) {
      window = { count: 0, endsAt: now + windowMs }
      this.#windows.set(key, window)
    }
    window.count += 1
    callback(null, { current: window.count, ttl: window.endsAt - now })
  }

  /** Each limit has separate windows: many addresses do not evict the windows of keys. */
  child(): MemoryStore {
    return new MemoryStore()
  }
}

/** Connects to Redis without delaying requests: while Redis is unavailable or slow, commands fail at once. */
export function connectLimits(url: string): Redis {
  const redis = new Redis(url, {
    enableOfflineQueue: false,
    maxRetriesPerRequest: 0,
    commandTimeout: redisCommandTimeoutMs,
    connectTimeout: redisConnectTimeoutMs,
    retryStrategy: () => redisReconnectPauseMs,
  })
  redis.on('error', () => {}) // the queue, which has a connection to the same Redis, logs it
  return redis
}

/** The client tokens of a person share a limit, so that one person cannot exhaust the limit of the key. */
const limitedBy = ({ keyId, token }: Caller): string =>
  token ? `${keyId}-${hash('sha256', token.endUser ?? '')}` : keyId

/** The headers of limits are lists: RateLimit header fields for HTTP, draft 11. */
const addToList = (reply: FastifyReply, name: string, item: string) =>
  reply.header(name, [reply.getHeader(name), item].filter((one) => one !== undefined).join(', '))

/**
 * Limits signups, and returns the counters for requests with a valid key and for others. A window begins with its first
 * request and has a fixed length. While Redis is unavailable, nothing is limited.
 */
export async function useRateLimits(app: FastifyInstance, limits: RateLimits) {
  const { redis } = limits
  await app.register(rateLimit, {
    global: false,
    skipOnError: true,
    ...(redis ? { redis, nameSpace: 'chowder-limit-' } : { store: MemoryStore }),
  })

  function createCounter(
    name: string,
    max: number,
    windowSeconds: number,
    keyOf: (request: FastifyRequest) => string,
  ): CountRequest {
    if (max === 0) return async () => {}
    const count = app.createRateLimit({
      max,
      timeWindow: windowSeconds * 1000,
      keyGenerator: (request) => `${name}-${keyOf(request)}`,
    })
    return async (request, reply) => {
      const counted = await count(request)
      if (counted.isAllowed || counted.ttl <= 0) return // not counted: Redis is unavailable
      const { isExceeded, remaining, ttlInSeconds } = counted
      addToList(reply, 'RateLimit-Policy', `"${name}";q=${max};w=${windowSeconds}`)
      addToList(reply, 'RateLimit', `"${name}";r=${remaining};t=${ttlInSeconds}`)
      if (!isExceeded) return
      throw new AppError('rate_limited', texts.rateLimited(ttlInSeconds), { retryAfterSeconds: ttlInSeconds })
    }
  }

  const addressOf = (request: FastifyRequest) => rateLimit.normalizeIP(request.ip)
  const countSignup = createCounter('signup', limits.signupsPerHour, hour, addressOf)
  app.addHook('onRoute', (route) => {
    if (route.config?.isSignup) route.preHandler = [countSignup, ...[route.preHandler ?? []].flat()]
  })
  const countOfKey = createCounter('key', limits.requestsPerMinute, minute, ({ caller }) => limitedBy(caller))
  const ofOrganization = ({ caller }: FastifyRequest) => caller.organizationId
  const countOfOrganization = createCounter(
    'organization',
    limits.organizationRequestsPerMinute,
    minute,
    ofOrganization,
  )
  const countRequest: CountRequest = async (request, reply) => {
    await countOfKey(request, reply)
    await countOfOrganization(request, reply)
  }
  /** Counts expensive calls. There is no limit if requests have none. */
  const createCallCounter = (name: string, max: number, keyOf: (request: FastifyRequest) => string) =>
    createCounter(name, Math.min(limits.requestsPerMinute, max), minute, keyOf)
  return {
    /** Counts by key, then by organization if the key has requests left. */
    countRequest,
    countKeyTest: createCallCounter('key-test', keyTestsPerMinute, ofOrganization),
    /** Counts by the instance of the path, which must belong to the caller. */
    countPairing: createCallCounter('pairing', pairingsPerMinute, (request) => instanceIdOf(request) ?? ''),
    countSkillSearch: createCallCounter('skill-search', skillSearchesPerMinute, ofOrganization),
    countFailure: createCounter('failed-auth', limits.failedAuthPerMinute, minute, addressOf),
  }
}

export type RequestCounters = Awaited<ReturnType<typeof useRateLimits>>
