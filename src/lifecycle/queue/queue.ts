import { setTimeout as sleep } from 'node:timers/promises'
import { runMigrations, SchemaMigrationRequiredError, SchemaVersionMismatchError } from 'bullmq'
import pTimeout from 'p-timeout'
import type pg from 'pg'
import { StartupError } from '#errors/startup-error.ts'
import type { InstanceQueue } from '#instances/queue.ts'
import { type Logger, logFirstAndRecovery } from '#platform/log.ts'
import { poll } from '#platform/poll.ts'
import {
  type BackendConnections,
  type BackendEvents,
  connectBackend,
  enqueueTimeoutMs,
  type QueueBackend,
  queueName,
  queueSchema,
} from './queue-backend.ts'

/** Limit of waiting jobs: each job that finds a due row enqueues the next one. */
const maxWaiting = 64
const closeTimeoutMs = 5000
const reconnectPauseMs = 1000

type JobQueue = ReturnType<BackendConnections['createJobQueue']>

export interface ReconcileQueue extends InstanceQueue {
  /** Throws a StartupError when the queue's tables are missing or outdated. Does not wait for Redis. */
  check(): Promise<void>
  /** Whether the queue answers before the signal is aborted. */
  ping(signal: AbortSignal): Promise<boolean>
  countWaiting(): Promise<number>
  /** How long the oldest waiting job has waited; null when none waits. */
  oldestWaitMs(): Promise<number | null>
  /** Calls `take` for each job, at most `slots` at once. `stop` takes no new jobs, and waits 5 s at most for calls. */
  work(take: () => Promise<void>, slots: number): { stop(): Promise<void> }
  close(): Promise<void>
}

/** Creates or updates the queue's own tables. Only for the PostgreSQL backend. */
export async function migrateQueue(client: pg.PoolClient): Promise<void> {
  await runMigrations(client, queueSchema)
}

/** A job carries no data: it says that rows are due. Attempts are counted on the rows. */
const jobOptions = { removeOnComplete: true, removeOnFail: true, attempts: 1 }

async function addJob(jobs: JobQueue): Promise<void> {
  if ((await jobs.getWaitingCount()) < maxWaiting) await jobs.add(queueName, {}, jobOptions)
}

/** Resolves when `ending` settles or after `milliseconds`. */
const untilEnded = (ending: Promise<unknown>, milliseconds: number) =>
  pTimeout(ending, { milliseconds, message: false }).catch(() => {})

const schemaIsBehind = 'The queue has no schema in the database, or an old one. Run npm run migrate first.'

const outageTexts = {
  redis:
    'Redis cannot be reached: start it, or correct REDIS_URL. Until it answers, changes are accepted but not carried out, and requests are not limited',
  postgres: 'the queue is unreachable',
}

/** The only user of BullMQ. `prefix` separates the queues of several installations or tests. */
export function createQueue(backend: QueueBackend, log: Logger, prefix?: string): ReconcileQueue {
  const outageLog = logFirstAndRecovery(log, outageTexts[backend.kind], 'the queue is reachable again')
  let isClosed = false
  const outage: BackendEvents = {
    recovered: outageLog.recovered,
    failed(error) {
      if (!isClosed) outageLog.failed(error)
    },
  }
  const connections = connectBackend(backend, prefix, outage)
  const createJobQueue = () => {
    const created = connections.createJobQueue()
    created.on('error', outage.failed)
    return created
  }
  let queue = createJobQueue()
  let isWanted = false
  let isSending = false

  /**
   * A BullMQ queue on PostgreSQL whose first connection failed refuses every call, so it is replaced. Returns whether
   * another queue than the failed one is in use.
   */
  async function replaceUnlessReady(failed: JobQueue): Promise<boolean> {
    if (backend.kind !== 'postgres') return false
    const isReady = await failed.waitUntilReady().then(
      () => true,
      () => false,
    )
    if (isReady || isClosed) return false
    if (queue === failed) {
      queue = createJobQueue()
      await failed.close().catch(outage.failed)
    }
    return true
  }

  /** Calls the queue. Retries once if the failure is that of its first connection, which may be long ago. */
  async function ask<T>(question: (jobs: JobQueue) => Promise<T>): Promise<T> {
    const asked = queue
    try {
      return await question(asked)
    } catch (error) {
      if (await replaceUnlessReady(asked)) return question(queue)
      throw error
    }
  }

  /** Adds a job at once, and one more for all requests that arrive meanwhile. */
  async function addJobs(): Promise<void> {
    isSending = true
    while (isWanted) {
      isWanted = false
      const added = ask(addJob).then(outage.recovered, outage.failed)
      await pTimeout(added, { milliseconds: enqueueTimeoutMs, message: false })
    }
    isSending = false
  }

  return {
    enqueue() {
      isWanted = true
      if (!isSending) void addJobs()
    },
    async check() {
      if (backend.kind !== 'postgres') return
      await ask((jobs) => jobs.waitUntilReady()).catch((cause: unknown) => {
        const isBehind = cause instanceof SchemaMigrationRequiredError || cause instanceof SchemaVersionMismatchError
        throw isBehind ? new StartupError(schemaIsBehind, { cause }) : cause
      })
    },
    ping: (signal) =>
      pTimeout(connections.ping(), { milliseconds: Number.POSITIVE_INFINITY, signal }).then(
        () => true,
        () => false,
      ),
    countWaiting: () => ask((jobs) => jobs.getWaitingCount()),
    async oldestWaitMs() {
      const [oldest] = await ask((jobs) => jobs.getWaiting(0, 0))
      return oldest ? Date.now() - oldest.timestamp : null
    },
    work: (take, slots) => takeJobs(connections, outage, take, slots),
    async close() {
      isClosed = true
      await untilEnded(queue.close(), closeTimeoutMs)
      await untilEnded(connections.close(), closeTimeoutMs)
    },
  }
}

function takeJobs(
  connections: BackendConnections,
  outage: BackendEvents,
  take: () => Promise<void>,
  slots: number,
): { stop(): Promise<void> } {
  const ending = new AbortController()
  const createWorker = () => {
    const created = connections.createWorker(take, slots)
    created.on('error', outage.failed)
    created.on('completed', outage.recovered)
    return created
  }
  let worker = createWorker()

  /** A BullMQ worker whose first connection failed never takes a job, so it is replaced once the queue answers. */
  async function begin(): Promise<void> {
    const { signal } = ending
    const isReachable = () => connections.ping().then(() => true, outage.failed)
    while (!(await worker.waitUntilReady().then(() => true, outage.failed))) {
      await sleep(reconnectPauseMs, undefined, { signal })
      await poll(isReachable, { pauseMs: reconnectPauseMs, timeoutMs: Number.POSITIVE_INFINITY, signal })
      await worker.close(true)
      worker = createWorker()
    }
    if (!signal.aborted) await worker.run()
  }
  void begin().catch((error: unknown) => {
    if (!ending.signal.aborted) outage.failed(error)
  })

  return {
    async stop() {
      ending.abort()
      await untilEnded(worker.close(), closeTimeoutMs)
    },
  }
}
