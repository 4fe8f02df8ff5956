import { setTimeout as sleep } from 'node:timers/promises'
import { createPostgresBackend, type Job, Queue, runMigrations, Worker } from 'bullmq'
import { Redis } from 'ioredis'
import pg from 'pg'
import type { InstanceQueue, InstanceRef } from '#instances/queue.ts'
import { atMost } from '#platform/deadline.ts'
import { type Logger, logFirstAndRecovery } from '#platform/log.ts'

const name = 'reconcile-instance'
/**
 * In a flood the bells that come within this time travel together, and no more of them than workers can have use for:
 * the rest is dropped, and the sweep rings for it before a worker is free.
 */
const betweenBellsMs = 100
const maxPending = 64
/** The schema that BullMQ keeps its tables in. */
const schema = 'bullmq'
const poolSize = 8
/** Without it a connection that was cut in silence is noticed after two hours. */
const keepAliveInitialDelayMillis = 10_000
const connectTimeoutMs = 5000
/** A trip that takes longer is left behind: the sweep rings again for what it carried. */
const ringTimeoutMs = 5000
const statementTimeoutMs = 15_000
/** A connection that was cut in silence never answers: it is given up then. A worker's waits up to 10 s for a job. */
const silenceMs = 20_000
const closeTimeoutMs = 5000
const reconnectAtMostMs = 2000
const firstConnectAgainMs = 1000

/** What carries the bells: Redis when a URL is given, else the database itself. */
export type QueueBackend = { kind: 'redis'; url: string } | { kind: 'postgres'; connection: pg.PoolConfig }

export interface ReconcileQueue extends InstanceQueue {
  /** Throws when the queue's schema is not there or behind. Waits for no Redis. */
  check(): Promise<void>
  /** Whether the queue answers. */
  ping(signal: AbortSignal): Promise<boolean>
  /** How many bells wait to be taken. */
  countWaiting(): Promise<number>
  /** How long the oldest bell has waited to be taken; null when none waits. */
  oldestWaitMs(): Promise<number | null>
  /** Calls `process` for each bell, at most `concurrency` at once. Resolves to what ends it, within `drainMs`. */
  work(
    process: (due: InstanceRef, stop: AbortSignal) => Promise<void>,
    concurrency: number,
  ): Promise<{ stop(drainMs: number): Promise<void> }>
  close(): Promise<void>
}

/** Creates or updates the queue's own tables. Only for the PostgreSQL backend. */
export async function migrateQueue(client: pg.PoolClient): Promise<void> {
  await runMigrations(client, schema)
}

/** Job data is ids and counts: a queue is no place for secrets. */
type Process = (job: Job<InstanceRef>) => Promise<void>

/** BullMQ's constructors take a connection and, for PostgreSQL, the backend last. */
function createBackend(
  backend: QueueBackend,
  prefix: string | undefined,
  failed: (error: unknown) => void,
  recovered: () => void,
) {
  const naming = prefix === undefined ? {} : { prefix }
  if (backend.kind === 'postgres') {
    const pool = new pg.Pool({
      ...backend.connection,
      max: poolSize,
      keepAlive: true,
      keepAliveInitialDelayMillis,
      connectionTimeoutMillis: connectTimeoutMs,
      statement_timeout: statementTimeoutMs,
      query_timeout: silenceMs,
      options: `-c search_path=${schema}`,
    })
    pool.on('connect', recovered)
    // The pool's published types and BullMQ's own description of them differ in the overloads of `on` alone.
    const connection = pool as unknown as Parameters<typeof createPostgresBackend>[1]['connection']
    const options = { ...naming, connection }
    return {
      queue: () => new Queue(name, options, createPostgresBackend),
      worker: (process: Process, concurrency: number) =>
        new Worker(name, process, { ...options, ...timing, concurrency }, createPostgresBackend),
      ping: async () => void (await pool.query('select 1')),
      end: () => pool.end(),
    }
  }
  const connections: Redis[] = []
  const connect = (options: {
    maxRetriesPerRequest: number | null
    enableOfflineQueue: boolean
    socketTimeout: number
  }) => {
    const redis = new Redis(backend.url, {
      ...options,
      keepAlive: keepAliveInitialDelayMillis,
      retryStrategy: (times) => Math.min(times * 100, reconnectAtMostMs),
    })
    redis.on('error', failed)
    redis.on('ready', recovered)
    connections.push(redis)
    return redis
  }
  // A bell fails at once when Redis is away: the request that rings it does not wait.
  const ringing = connect({ maxRetriesPerRequest: 1, enableOfflineQueue: false, socketTimeout: ringTimeoutMs })
  return {
    queue: () => new Queue(name, { ...naming, connection: ringing }),
    worker: (process: Process, concurrency: number) =>
      new Worker(name, process, {
        ...naming,
        ...timing,
        concurrency,
        connection: connect({ maxRetriesPerRequest: null, enableOfflineQueue: true, socketTimeout: silenceMs }),
      }),
    ping: async () => void (await ringing.ping()),
    end: async () => {
      for (const redis of connections) redis.disconnect()
    },
  }
}

/** A job that ran twice is harmless: the lease decides. So it may be found stalled soon and any number of times. */
const timing = {
  autorun: false,
  lockDuration: 10_000,
  stalledInterval: 5000,
  maxStalledCount: 1000,
  // Else a worker that has lost its connection once is deaf for 15 s, and takes as long to close.
  runRetryDelay: 1000,
}

/** The one seam to BullMQ. `prefix` keeps the queues of several installations, or tests, apart. */
export function createQueue(backend: QueueBackend, log: Logger, prefix?: string): ReconcileQueue {
  const health = logFirstAndRecovery(log, 'the queue is unreachable', 'the queue is reachable again')
  const {
    queue: openJobs,
    worker: openWorker,
    ping,
    end,
  } = createBackend(backend, prefix, health.failed, health.recovered)
  const queue = openJobs()
  queue.on('error', health.failed)
  let pending: InstanceRef[] = []
  let isRinging = false

  // One job an intent and take: ringing twice is one job. The token is in the id because a killed worker leaves its job
  // active, and BullMQ ignores an add under the same id; each take raises the token, so the next bell has a new id.
  const jobFor = ({ id, organizationId, generation, leaseToken }: InstanceRef) => ({
    name,
    data: { id, organizationId, generation, leaseToken } satisfies InstanceRef,
    // A kept id would swallow the next bell; attempts are counted on the row.
    opts: { jobId: `${id}.${generation}.${leaseToken}`, removeOnComplete: true, removeOnFail: true, attempts: 1 },
  })

  /** The first rings at once; those that ring soon after share the next trip. */
  async function ringPending(): Promise<void> {
    isRinging = true
    while (pending.length > 0) {
      const batch = pending
      pending = []
      await atMost(ringTimeoutMs, queue.addBulk(batch.map(jobFor)).then(health.recovered, health.failed))
      await sleep(betweenBellsMs, undefined, { ref: false })
    }
    isRinging = false
  }

  return {
    enqueue(row) {
      if (pending.length >= maxPending) return
      pending.push(row)
      if (!isRinging) void ringPending()
    },
    async check() {
      if (backend.kind === 'postgres') await queue.waitUntilReady()
    },
    ping(signal) {
      return new Promise((resolve) => {
        signal.addEventListener('abort', () => resolve(false), { once: true })
        ping().then(
          () => resolve(true),
          () => resolve(false),
        )
      })
    },
    countWaiting: () => queue.getWaitingCount(),
    async oldestWaitMs() {
      const [oldest] = await queue.getWaiting(0, 0)
      return oldest ? Date.now() - oldest.timestamp : null
    },
    async work(process, concurrency) {
      const ending = new AbortController()
      const stopping = new AbortController()
      const open = () => {
        const opened = openWorker((job) => process(job.data, stopping.signal), concurrency)
        opened.on('error', health.failed)
        opened.on('completed', health.recovered)
        return opened
      }
      let worker = open()

      /** BullMQ remembers for ever that a first connection failed: such a worker would turn in circles, and take no job. */
      async function begin(): Promise<void> {
        while (!(await worker.waitUntilReady().then(() => true, health.failed))) {
          do {
            await sleep(firstConnectAgainMs, undefined, { signal: ending.signal }).catch(() => {})
            if (ending.signal.aborted) return
          } while (!(await ping().then(() => true, health.failed)))
          await worker.close(true)
          worker = open()
        }
        if (!ending.signal.aborted) await worker.run()
      }
      void begin().catch(health.failed)

      return {
        async stop(drainMs) {
          ending.abort()
          const isRunning = worker.isRunning()
          const closed = worker.close() // takes no new jobs and waits for the running ones
          if (isRunning) await atMost(drainMs, closed)
          stopping.abort(new Error('the worker is ending'))
          await atMost(closeTimeoutMs, closed)
        },
      }
    },
    async close() {
      await atMost(closeTimeoutMs, queue.close())
      await atMost(closeTimeoutMs, end())
    },
  }
}
