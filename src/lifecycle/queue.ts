import { setTimeout as sleep } from 'node:timers/promises'
import { runMigrations, SchemaMigrationRequiredError, SchemaVersionMismatchError } from 'bullmq'
import pTimeout from 'p-timeout'
import type pg from 'pg'
import type { InstanceQueue, InstanceRef } from '#instances/queue.ts'
import { type Logger, logFirstAndRecovery } from '#platform/log.ts'
import { poll } from '#platform/poll.ts'
import { StartupError } from '#platform/startup-error.ts'
import {
  type BackendConnections,
  type BackendEvents,
  connectBackend,
  enqueueTimeoutMs,
  type QueueBackend,
  queueName,
  queueSchema,
} from './queue-backend.ts'

/**
 * Instances that are enqueued within this time are sent as one batch, and no more than the workers can use soon: the
 * rest is dropped, and the sweep enqueues it before a worker is free.
 */
const batchPauseMs = 100
const maxPending = 64
const closeTimeoutMs = 5000
const reconnectPauseMs = 1000

type JobQueue = ReturnType<BackendConnections['createJobQueue']>
type ProcessInstance = (instance: InstanceRef, stop: AbortSignal) => Promise<void>

export interface ReconcileQueue extends InstanceQueue {
  /** Throws a StartupError when the queue's tables are missing or outdated. Does not wait for Redis. */
  check(): Promise<void>
  /** Whether the queue answers before the signal is aborted. */
  ping(signal: AbortSignal): Promise<boolean>
  countWaiting(): Promise<number>
  /** How long the oldest waiting job has waited; null when none waits. */
  oldestWaitMs(): Promise<number | null>
  /**
   * Calls `process` for each job, at most `concurrency` at once. `stop` takes no new jobs, waits `drainMs` at most for
   * the running ones, then aborts them.
   */
  work(process: ProcessInstance, concurrency: number): { stop(drainMs: number): Promise<void> }
  close(): Promise<void>
}

/** Creates or updates the queue's own tables. Only for the PostgreSQL backend. */
export async function migrateQueue(client: pg.PoolClient): Promise<void> {
  await runMigrations(client, queueSchema)
}

/**
 * One job for an intent and an attempt: the same instance enqueued twice is one job. The lease token is in the id
 * because BullMQ ignores a job whose id exists, and a killed worker leaves its job active: the next attempt has a new
 * token, and so a new id. For the same reason ended jobs are removed. Attempts are counted on the row.
 */
const jobFor = ({ id, organizationId, generation, leaseToken }: InstanceRef) => ({
  name: queueName,
  data: { id, organizationId, generation, leaseToken } satisfies InstanceRef,
  opts: { jobId: `${id}.${generation}.${leaseToken}`, removeOnComplete: true, removeOnFail: true, attempts: 1 },
})

/** Resolves when something has ended, also with a failure, and after `milliseconds` in any case. */
const untilEnded = (ending: Promise<unknown>, milliseconds: number) =>
  pTimeout(ending, { milliseconds, message: false }).catch(() => {})

const schemaIsBehind = 'The queue has no schema in the database, or an old one. Run npm run migrate first.'

const outageTexts = {
  redis:
    'Redis cannot be reached: start it, or correct REDIS_URL. Until it answers, changes are accepted but not carried out, and requests are not limited',
  postgres: 'the queue is unreachable',
}

/** The only user of BullMQ. `prefix` separates the queues of several installations, or tests. */
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
  let pending: InstanceRef[] = []
  let isSending = false

  /**
   * A BullMQ queue on PostgreSQL whose first connection failed refuses everything from then on: it is replaced. Returns
   * whether there is another queue than the failed one.
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

  /** Asks the queue, and once more when the failure is that of its first connection, which may be long ago. */
  async function ask<T>(question: (jobs: JobQueue) => Promise<T>): Promise<T> {
    const asked = queue
    try {
      return await question(asked)
    } catch (error) {
      if (await replaceUnlessReady(asked)) return question(queue)
      throw error
    }
  }

  /** Sends the first instance at once, and those that follow soon after it as batches. */
  async function sendPending(): Promise<void> {
    isSending = true
    while (pending.length > 0) {
      const batch = pending
      pending = []
      const sent = ask((jobs) => jobs.addBulk(batch.map(jobFor))).then(outage.recovered, outage.failed)
      await pTimeout(sent, { milliseconds: enqueueTimeoutMs, message: false })
      await sleep(batchPauseMs, undefined, { ref: false })
    }
    isSending = false
  }

  return {
    enqueue(instance) {
      if (pending.length >= maxPending) return
      pending.push(instance)
      if (!isSending) void sendPending()
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
    work: (process, concurrency) => takeJobs(connections, outage, process, concurrency),
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
  process: ProcessInstance,
  concurrency: number,
): { stop(drainMs: number): Promise<void> } {
  const ending = new AbortController()
  const aborting = new AbortController()
  const createWorker = () => {
    const created = connections.createWorker((job) => process(job.data, aborting.signal), concurrency)
    created.on('error', outage.failed)
    created.on('completed', outage.recovered)
    return created
  }
  let worker = createWorker()

  /** A BullMQ worker whose first connection failed never takes a job: it is replaced once the queue answers. */
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
    async stop(drainMs) {
      ending.abort()
      const isRunning = worker.isRunning()
      const closed = worker.close() // takes no new jobs and waits for the running ones
      if (isRunning) await untilEnded(closed, drainMs)
      aborting.abort(new Error('the worker is ending'))
      await untilEnded(closed, closeTimeoutMs)
    },
  }
}
