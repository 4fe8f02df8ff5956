import rateLimit from '@fastify/rate-limit'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { Redis } from 'ioredis'
import { LRUCache } from 'lru-cache'
import { AppError } from '#platform/errors.ts'
import { type Logger, logFirstAndRecovery } from '#platform/log.ts'
import { texts } from '#platform/texts.ts'

/** How many of each are taken; 0 is no limit. */
export interface RateLimits {
  /** Requests of one key a minute. */
  requestsPerMinute: number
  /** New organizations from one address an hour. */
  signupsPerHour: number
  /** Requests without a good key from one address a minute. A good key is never refused for others' bad ones. */
  failedAuthPerMinute: number
  /** Where all processes count together. Without it each counts for itself. */
  redis: Redis | null
}

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Counted by address once the body was found valid. */
    isSignup?: boolean
  }
}

/** Counts a request and shows in its headers what is left. Throws AppError `rate_limited` for one too many. */
type Count = (request: FastifyRequest, reply: FastifyReply) => Promise<void>

const rememberedWindows = 10_000
const minute = 60
const hour = 60 * minute
/** What a request may wait for Redis; it is let through then. */
const redisAnswersMs = 50
const redisConnectsMs = 2000
const redisRetriesEveryMs = 1000

/** Counts in this process, by the monotonic clock: a clock that is set back must not keep anybody out. */
class MemoryStore {
  readonly #windows = new LRUCache<string, { count: number; endsAt: number }>({ max: rememberedWindows })

  incr(key: string, answer: (error: null, result: { current: number; ttl: number }) => void, windowMs: number): void {
    const now = performance.now()
    let window = this.#windows.get(key)
    if (!window || window.endsAt <= now) {
      window = { count: 0, endsAt: now + windowMs }
      this.#windows.set(key, window)
    }
    window.count += 1
    answer(null, { current: window.count, ttl: window.endsAt - now })
  }

  /** Each limit has windows of its own: a flood of addresses pushes no key's out. */
  child(): MemoryStore {
    return new MemoryStore()
  }
}

/** A connection that never holds a request up: while Redis is away or slow, its commands fail at once. */
export function connectLimits(url: string, log: Logger): Redis {
  const redis = new Redis(url, {
    enableOfflineQueue: false,
    maxRetriesPerRequest: 0,
    commandTimeout: redisAnswersMs,
    connectTimeout: redisConnectsMs,
    retryStrategy: () => redisRetriesEveryMs,
  })
  const health = logFirstAndRecovery(
    log,
    'the Redis of the rate limits is unreachable',
    'the Redis of the rate limits is reachable again',
  )
  redis.on('error', health.failed)
  redis.on('ready', health.recovered)
  return redis
}

/**
 * Limits signups, and answers how to count the requests that come with a good key and those that do not. Windows are
 * fixed and begin with the first request in them. Nobody is refused for want of Redis.
 */
export async function useRateLimits(app: FastifyInstance, limits: RateLimits) {
  const { redis } = limits
  await app.register(rateLimit, {
    global: false,
    skipOnError: true,
    ...(redis ? { redis, nameSpace: 'chowder-limit-' } : { store: MemoryStore }),
  })

  function counting(
    name: string,
    max: number,
    windowSeconds: number,
    keyOf: (request: FastifyRequest) => string,
  ): Count {
    if (max === 0) return async () => {}
    const count = app.createRateLimit({
      max,
      timeWindow: windowSeconds * 1000,
      keyGenerator: (request) => `${name}-${keyOf(request)}`,
    })
    return async (request, reply) => {
      const counted = await count(request)
      if (counted.isAllowed || counted.ttl <= 0) return // not counted: Redis is away
      const { isExceeded, remaining, ttlInSeconds } = counted
      reply.header('RateLimit-Policy', `"${name}";q=${max};w=${windowSeconds}`)
      reply.header('RateLimit', `"${name}";r=${remaining};t=${ttlInSeconds}`)
      if (!isExceeded) return
      throw new AppError('rate_limited', texts.rateLimited(ttlInSeconds), { retryAfterSeconds: ttlInSeconds })
    }
  }

  const addressOf = (request: FastifyRequest) => rateLimit.normalizeIP(request.ip)
  const countSignup = counting('signup', limits.signupsPerHour, hour, addressOf)
  app.addHook('onRoute', (route) => {
    if (route.config?.isSignup) route.preHandler = [countSignup, ...[route.preHandler ?? []].flat()]
  })
  return {
    countRequest: counting('key', limits.requestsPerMinute, minute, ({ caller }) => caller.keyId),
    countFailure: counting('failed-auth', limits.failedAuthPerMinute, minute, addressOf),
  }
}

export type AuthCounts = Awaited<ReturnType<typeof useRateLimits>>
