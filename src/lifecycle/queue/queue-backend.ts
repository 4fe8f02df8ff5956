import { setTimeout as sleep } from 'node:timers/promises'
import { createPostgresBackend, Queue, Worker } from 'bullmq'
import { Redis } from 'ioredis'
import pg from 'pg'
import { connectionLifetimeSeconds } from '#database/client.ts'

export const queueName = 'reconcile-instance'
/** The schema that holds BullMQ's tables. */
export const queueSchema = 'bullmq'
const poolSize = 8
/** Without keep-alive, a connection that broke silently is detected after two hours. */
const keepAliveInitialDelayMillis = 10_000
const connectTimeoutMs = 5000
export const enqueueTimeoutMs = 5000
const statementTimeoutMs = 15_000
/** A connection that broke silently is given up after this. Above the 10 s that a worker waits for a job. */
const silenceMs = 20_000
const maxReconnectPauseMs = 2000
/** BullMQ's default keeps a worker from jobs for 15 s after a lost connection, and from closing sooner. */
const retryPauseMs = 1000
/** BullMQ's code for a job that cannot be ended, e.g. because another worker has taken it over. */
const notEnded = 'BM001'

/** The store of the jobs: Redis, or the database itself. */
export type QueueBackend = { kind: 'redis'; url: string } | { kind: 'postgres'; connection: pg.PoolConfig }

type TakeJob = () => Promise<void>

export interface BackendEvents {
  failed(error: unknown): void
  recovered(): void
}

/** Running a job twice is harmless, so jobs may be found stalled early and often. */
const workerOptions = {
  autorun: false,
  lockDuration: 10_000,
  stalledInterval: 5000,
  maxStalledCount: 1000,
  runRetryDelay: retryPauseMs,
}

export type BackendConnections = ReturnType<typeof connectBackend>

/** Connects in the background. Connections to Redis report their errors to `events`; BullMQ reports the others. */
export const connectBackend = (backend: QueueBackend, prefix: string | undefined, events: BackendEvents) =>
  backend.kind === 'postgres'
    ? connectPostgres(backend.connection, prefix, events)
    : connectRedis(backend.url, prefix, events)

const namingFor = (prefix: string | undefined) => (prefix === undefined ? {} : { prefix })

function connectPostgres(config: pg.PoolConfig, prefix: string | undefined, { recovered }: BackendEvents) {
  const pool = new pg.Pool({
    ...config,
    max: poolSize,
    maxLifetimeSeconds: connectionLifetimeSeconds,
    keepAlive: true,
    keepAliveInitialDelayMillis,
    connectionTimeoutMillis: connectTimeoutMs,
    statement_timeout: statementTimeoutMs,
    query_timeout: silenceMs,
    options: `-c search_path=${queueSchema}`,
  })
  pool.on('connect', recovered)
  // BullMQ reports them once it has the pool. Without a listener they would end the process.
  pool.on('error', () => {})
  // The pool's published types and BullMQ's types of them differ only in the overloads of `on`.
  const over = (connection: pg.Pool) => ({
    ...namingFor(prefix),
    connection: connection as unknown as Parameters<typeof createPostgresBackend>[1]['connection'],
  })
  return {
    createJobQueue: () => new Queue(queueName, over(pool), createPostgresBackend),
    createWorker: (take: TakeJob, slots: number) =>
      new Worker(
        queueName,
        take,
        { ...over(withPausedFailures(pool)), ...workerOptions, concurrency: slots },
        createPostgresBackend,
      ),
    ping: (): Promise<unknown> => pool.query('select 1'),
    close: () => pool.end(),
  }
}

/**
 * Adds a pause after each failed query of a pool. BullMQ's worker retries at once after every failure except
 * ECONNREFUSED: it would query a starting database thousands of times a second.
 */
function withPausedFailures(pool: pg.Pool): pg.Pool {
  const query = async (...given: [text: string, values: unknown[]]) => {
    try {
      return await pool.query(...given)
    } catch (error) {
      if (error instanceof pg.DatabaseError && error.code === notEnded) throw error
      await sleep(retryPauseMs, undefined, { ref: false })
      throw error
    }
  }
  return new Proxy(pool, {
    get(target, name) {
      if (name === 'query') return query
      const value: unknown = Reflect.get(target, name)
      return typeof value === 'function' ? value.bind(target) : value
    },
  })
}

function connectRedis(url: string, prefix: string | undefined, { failed, recovered }: BackendEvents) {
  const connections: Redis[] = []
  const connect = (options: {
    maxRetriesPerRequest: number | null
    enableOfflineQueue: boolean
    socketTimeout: number
  }) => {
    const redis = new Redis(url, {
      ...options,
      keepAlive: keepAliveInitialDelayMillis,
      retryStrategy: (times) => Math.min(times * 100, maxReconnectPauseMs),
    })
    redis.on('error', failed)
    redis.on('ready', recovered)
    connections.push(redis)
    return redis
  }
  // Adding a job fails at once while Redis is unreachable: the request that enqueues does not wait.
  const adding = connect({ maxRetriesPerRequest: 1, enableOfflineQueue: false, socketTimeout: enqueueTimeoutMs })
  const naming = namingFor(prefix)
  return {
    createJobQueue: () => new Queue(queueName, { ...naming, connection: adding }),
    createWorker: (take: TakeJob, slots: number) =>
      new Worker(queueName, take, {
        ...naming,
        ...workerOptions,
        concurrency: slots,
        connection: connect({ maxRetriesPerRequest: null, enableOfflineQueue: true, socketTimeout: silenceMs }),
      }),
    ping: (): Promise<unknown> => adding.ping(),
    async close() {
      for (const redis of connections) redis.disconnect()
    },
  }
}
