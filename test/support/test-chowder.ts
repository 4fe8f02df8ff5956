import { randomBytes } from 'node:crypto'
import type { FastifyInstance, InjectOptions } from 'fastify'
import { pino } from 'pino'
import { createCallers } from '#api/keys/callers.ts'
import { eraseDeleted } from '#api/organization/delete.ts'
import type { TurnTimeouts } from '#api/responses/turns/turn.ts'
import type { Billing } from '#api/subscription/stripe.ts'
import { syncSubscriptions } from '#api/subscription/sync.ts'
import { buildApp } from '#app.ts'
import type { Tier } from '#database/schema.ts'
import type { BodyTimes } from '#http/body-deadlines.ts'
import type { RateLimits } from '#http/rate-limit.ts'
import { createFindGateway, createFindSummary } from '#instances/find.ts'
import { createAskGateway } from '#instances/gateway/ask.ts'
import { createQueue, type ReconcileQueue } from '#lifecycle/queue.ts'
import type { QueueBackend } from '#lifecycle/queue-backend.ts'
import type { LifecycleDeps } from '#lifecycle/reconcile.ts'
import type { Timeouts } from '#lifecycle/step.ts'
import { type Intervals, startWorker } from '#lifecycle/worker.ts'
import type { PeriodicTask } from '#platform/periodic.ts'
import { createVault, type Vault } from '#platform/secrets.ts'
import type { SandboxDriver } from '#sandbox/driver.ts'
import { cloneDatabase, type TestDatabase } from './test-database.ts'

export interface TestChowderOptions {
  sandboxes: SandboxDriver
  database?: TestDatabase
  queue?: (database: TestDatabase) => QueueBackend
  defaultTier?: Tier
  timeouts?: Partial<Timeouts>
  intervals?: Intervals
  /** Where the provider's API is, so that no test asks a real one. */
  providerUrl?: string
  clawhubUrl?: string
  filesMaxBytes?: number
  bodyTimes?: BodyTimes
  turnTimeouts?: TurnTimeouts
  billing?: Billing
  limits?: Partial<RateLimits>
  trustedProxies?: number
}

const quick: Timeouts = { startWithoutProgressMs: 5000, startMs: 10_000, hungMs: 500, graceMs: 200 }
const quickIntervals: Intervals = { sweepEveryMs: 200, driftEveryMs: 200 }
const otherTasksEveryMs = 200
/** A port that nobody listens on: a refused connection is no verdict on a key. */
const nowhere = 'http://127.0.0.1:9'

interface Answer {
  status: number
  // biome-ignore lint/suspicious/noExplicitAny: a test reads what it expects
  body: any
  headers: Record<string, unknown>
}

export interface TestChowder {
  app: FastifyInstance
  database: TestDatabase
  vault: Vault
  queue: ReconcileQueue
  deps: LifecycleDeps
  /** The lines that were logged. */
  logged: string[]
  call(
    method: InjectOptions['method'],
    url: string,
    options?: { key?: string; body?: unknown; headers?: Record<string, string> },
  ): Promise<Answer>
  /** An organization with its key and, unless told otherwise, an Anthropic key. */
  signUp(options?: { providerKey?: string | null }): Promise<{ id: string; key: string }>
  startWorker(concurrency?: number): Promise<{ stop(): Promise<void> }>
  close(): Promise<void>
}

/** The whole product in this process on a real database and queue, with the sandboxes that a test hands in. */
export async function openTestChowder(options: TestChowderOptions): Promise<TestChowder> {
  const { sandboxes, timeouts, providerUrl = nowhere, defaultTier = 'lobster' } = options
  const database = options.database ?? (await cloneDatabase())
  const logged: string[] = []
  const log = pino({ level: 'trace' }, { write: (line: string) => void logged.push(line) })
  const vault = createVault(randomBytes(32))
  const prefix = `test-${database.connection.database ?? new URL(database.connection.connectionString ?? '').pathname.slice(1)}`
  const queue = createQueue(
    options.queue?.(database) ?? { kind: 'postgres', connection: database.connection },
    log,
    prefix,
  )
  const { db } = database
  const baseUrls = { anthropic: providerUrl, openai: providerUrl, gemini: providerUrl }
  const deps: LifecycleDeps = {
    db,
    vault,
    sandboxes,
    baseUrls,
    clawhubUrl: options.clawhubUrl,
    timeouts: { ...quick, ...timeouts },
    queue,
    log,
  }
  const findSummary = createFindSummary(db)
  const gatewayOf = createFindGateway(db, vault, findSummary)
  const callers = createCallers(db, log)
  const app = (await buildApp({
    db,
    vault,
    queue,
    log,
    sandboxes,
    baseUrls,
    sandboxDriver: sandboxes.name,
    defaultTier,
    publicUrl: () => 'http://chowder.test',
    findCaller: callers.find,
    forgetCaller: callers.forget,
    findSummary,
    gatewayOf,
    askGateway: createAskGateway(gatewayOf),
    forgetGateway: gatewayOf.forget,
    clawhubUrl: options.clawhubUrl,
    filesMaxBytes: options.filesMaxBytes ?? 2 * 1024 ** 3,
    billing: options.billing ?? null,
    limits: { requestsPerMinute: 0, signupsPerHour: 0, failedAuthPerMinute: 0, redis: null, ...options.limits },
    trustedProxies: options.trustedProxies ?? 0,
    ...(options.turnTimeouts && { turnTimeouts: options.turnTimeouts }),
    ...(options.bodyTimes && { bodyTimes: options.bodyTimes }),
    readiness: async () => ({ database: true, queue: true }),
  })) as unknown as FastifyInstance
  const workers: { stop(): Promise<void> }[] = []
  const { billing } = options
  const otherTasks: PeriodicTask[] = [
    { name: 'erasing', everyMs: otherTasksEveryMs, timeoutMs: 10_000, run: () => eraseDeleted(db, log) },
    ...(billing
      ? [
          {
            name: 'billing',
            everyMs: otherTasksEveryMs,
            timeoutMs: 10_000,
            run: (signal: AbortSignal) => syncSubscriptions({ db, billing, log }, signal),
          },
        ]
      : []),
  ]

  const chowder: TestChowder = {
    app,
    database,
    vault,
    queue,
    deps,
    logged,
    async call(method, url, { key, body, headers } = {}) {
      const answer = await app.inject({
        method: method ?? 'GET',
        url,
        headers: {
          ...(typeof body === 'string' && { 'content-type': 'application/json' }),
          ...(key !== undefined && { authorization: `Bearer ${key}` }),
          ...headers,
        },
        ...(body !== undefined && { payload: body as object }),
      })
      const text = answer.body
      return { status: answer.statusCode, body: text === '' ? undefined : JSON.parse(text), headers: answer.headers }
    },
    async signUp({ providerKey = 'sk-test' } = {}) {
      const { body } = await chowder.call('POST', '/v1/organization/signup', { body: { name: 'Acme' } })
      const key: string = body.api_key
      if (providerKey !== null) {
        await chowder.call('PATCH', '/v1/organization', { key, body: { model_api_keys: { anthropic: providerKey } } })
      }
      return { id: body.organization.id, key }
    },
    async startWorker(concurrency = 8) {
      const worker = await startWorker(
        deps,
        queue,
        concurrency,
        options.intervals ?? quickIntervals,
        new AbortController().signal,
        otherTasks,
      )
      workers.push(worker)
      return worker
    },
    async close() {
      await Promise.all(workers.map((worker) => worker.stop()))
      await app.close()
      await callers.close()
      await queue.close()
      if (!options.database) await database.drop()
    },
  }
  return chowder
}
