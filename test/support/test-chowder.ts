import { randomBytes } from 'node:crypto'
import type { FastifyInstance, InjectOptions } from 'fastify'
import { pino } from 'pino'
import type { Billing } from '#api/subscription/stripe.ts'
import { createApi } from '#composition/api.ts'
import type { MaintenanceIntervals } from '#composition/maintenance.ts'
import { createWorker, type WorkerParts } from '#composition/worker.ts'
import type { Tier } from '#database/schema.ts'
import type { BodyTimes } from '#http/body-deadlines.ts'
import type { InFlightLimits } from '#http/in-flight.ts'
import type { RequestOrigins } from '#http/origins.ts'
import type { RateLimits } from '#http/rate-limit.ts'
import { onlyRegion, type Region, type Regions } from '#instances/regions.ts'
import { createPlatformOutage } from '#lifecycle/attempt/platform-outage.ts'
import type { LifecycleDeps } from '#lifecycle/attempt/reconcile.ts'
import { createStartLimit } from '#lifecycle/attempt/start-limit.ts'
import type { Timeouts } from '#lifecycle/attempt/step.ts'
import { createQueue, type ReconcileQueue } from '#lifecycle/queue/queue.ts'
import type { QueueBackend } from '#lifecycle/queue/queue-backend.ts'
import type { Intervals, Worker } from '#lifecycle/worker.ts'
import { createHostDisk, type HostDisk } from '#platform/host-disk.ts'
import { newId } from '#platform/ids.ts'
import { redactedFields } from '#platform/log.ts'
import { createVault, type Vault } from '#platform/secrets.ts'
import type { SandboxDriver } from '#sandbox/driver.ts'
import type { SignupMode } from '#settings/exposure.ts'
import { type ResourceSettings, usualMaxima, usualResources } from '#settings/resources.ts'
import type { WarmPoolSize } from '#settings/warm-pool.ts'
import type { TurnTimeouts } from '#turns/turn.ts'
import { keepText, newSecret, noteAnswer, noteRequest } from './canary/secrets.ts'
import { requireErrorBody } from './error-body.ts'
import { present } from './present.ts'
import { cloneDatabase, type TestDatabase } from './test-database.ts'

export interface TestChowderOptions {
  /** The driver of the only region; left out with `regions`. */
  sandboxes?: SandboxDriver
  regions?: (shared: Omit<Region, 'region' | 'hasUnnamed' | 'sandboxes'>) => Regions
  database?: TestDatabase
  queue?: (database: TestDatabase) => QueueBackend
  defaultTier?: Tier
  timeouts?: Partial<Timeouts>
  intervals?: Intervals
  maintenance?: MaintenanceIntervals
  /** Where the provider's API is, so that no test asks a real one. */
  providerUrl?: string
  /** Where agents find the relay; by default nobody listens there. */
  relayUrl?: string
  clawhubUrl?: string
  resources?: ResourceSettings
  hostDisk?: HostDisk
  /** The oldest version of OpenClaw that agents may start with. */
  minOpenclawVersion?: string
  idleTimeoutSeconds?: number
  /** None by default. */
  warmPool?: WarmPoolSize
  filesMaxBytes?: number
  bodyTimes?: BodyTimes
  turnTimeouts?: TurnTimeouts
  billing?: Billing
  limits?: Partial<RateLimits>
  inFlightLimits?: Partial<InFlightLimits>
  origins?: Partial<RequestOrigins>
  signup?: SignupMode
  trustedProxies?: number
  areWorkersMissing?: () => boolean
  /** By default one with a new key. */
  vault?: Vault
  /** Of webhooks. */
  receivers?: Pick<WorkerParts, 'operatorHosts' | 'resolve'>
}

const quickTimeouts: Timeouts = {
  startWithoutProgressMs: 5000,
  startMs: 10_000,
  hungMs: 500,
  busyMs: 60_000,
  graceMs: 200,
}
// Of each open Chowder of a run: an idle worker took 13 % of a core with 200 ms for all of these.
const quickIntervals: Intervals = { sweepEveryMs: 500, driftEveryMs: 1000 }
const quickMaintenance: MaintenanceIntervals = {
  suspendMs: 500,
  eraseMs: 500,
  billingMs: 500,
  // Longer than any file of tests: a test that ages rows calls what deletes them itself, and nothing may come before it.
  expireMs: 3_600_000,
  surplusMs: 3_600_000,
  deliverMs: 500,
}
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
  /** An organization with its key and, if `providerKey` is not null, an Anthropic key. */
  signUp(options?: { providerKey?: string | null }): Promise<{ id: string; key: string }>
  startWorker(concurrency?: number): Promise<Worker>
  /** Writes an instance as a worker does once its gateway is ready. */
  markReady(id: string, endpoint: object): Promise<void>
  /** Creates an instance that is ready. Returns its id. */
  createReady(key: string, endpoint: object): Promise<string>
  close(): Promise<void>
}

/** The whole product in this process, on a real database and queue, with the sandboxes of the test. */
export async function openTestChowder(options: TestChowderOptions): Promise<TestChowder> {
  const { providerUrl = nowhere, billing = null } = options
  const database = options.database ?? (await cloneDatabase())
  const logged: string[] = []
  const log = pino({ level: 'trace', redact: redactedFields }, { write: (line: string) => void logged.push(line) })
  const vault = options.vault ?? createVault(randomBytes(32))
  const { connection } = database
  const prefix = `test-${connection.database ?? new URL(connection.connectionString ?? '').pathname.slice(1)}`
  const queue = createQueue(options.queue?.(database) ?? { kind: 'postgres', connection }, log, prefix)
  const hostDisk = options.hostDisk ?? createHostDisk('/', 0)
  const shared = {
    baseUrls: { anthropic: providerUrl, openai: providerUrl, gemini: providerUrl },
    relay: { url: options.relayUrl, port: 9 },
    clawhubUrl: options.clawhubUrl,
    resources: options.resources ?? { defaults: usualResources, maxima: usualMaxima },
    warmPool: options.warmPool ?? 0,
    minOpenclawVersion: options.minOpenclawVersion ?? '2026.1.1',
  }
  const regions = options.regions?.(shared) ?? onlyRegion({ ...shared, sandboxes: present(options.sandboxes) })
  const parts = { db: database.db, vault, queue, regions, billing, hostDisk, log }
  const timeouts = { ...quickTimeouts, ...options.timeouts }
  /** Of the API and its first worker, as in the role `all`. */
  const processId = newId()
  const api = await createApi(
    {
      ...parts,
      processId,
      publicUrl: () => 'http://chowder.test',
      areWorkersMissing: options.areWorkersMissing ?? (() => false),
      isDraining: () => false,
    },
    {
      ...shared,
      defaultTier: options.defaultTier ?? 'lobster',
      idleTimeoutSeconds: options.idleTimeoutSeconds ?? null,
      filesMaxBytes: options.filesMaxBytes ?? 2 * 1024 ** 3,
      limits: {
        requestsPerMinute: 0,
        organizationRequestsPerMinute: 0,
        signupsPerHour: 0,
        failedAuthPerMinute: 0,
        redis: null,
        ...options.limits,
      },
      inFlightLimits: {
        turns: 0,
        sockets: 0,
        transfers: 0,
        lists: 0,
        bodyBytes: 0,
        processBodyBytes: 0,
        ...options.inFlightLimits,
      },
      origins: { hosts: null, own: null, foreign: [], ...options.origins },
      signup: options.signup ?? 'open',
      trustedProxies: options.trustedProxies ?? 0,
      ...(options.turnTimeouts && { turnTimeouts: options.turnTimeouts }),
      ...(options.bodyTimes && { bodyTimes: options.bodyTimes }),
    },
  )
  const app = api.app as unknown as FastifyInstance
  const workers: { stop(): Promise<void> }[] = []

  const chowder: TestChowder = {
    app,
    database,
    vault,
    queue,
    deps: {
      ...parts,
      ...shared,
      starts: createStartLimit(),
      platformOutage: createPlatformOutage(regions.default().sandboxes, log),
      timeouts,
      ...regions.default(),
    },
    logged,
    async call(method, url, { key, body, headers } = {}) {
      const sent = {
        ...(typeof body === 'string' && { 'content-type': 'application/json' }),
        ...(key !== undefined && { authorization: `Bearer ${key}` }),
        ...headers,
      }
      noteRequest(url, sent, body)
      const answer = await app.inject({
        method: method ?? 'GET',
        url,
        headers: sent,
        ...(body !== undefined && { payload: body as object }),
      })
      const text = answer.body
      noteAnswer(text)
      const parsed = text === '' ? undefined : JSON.parse(text)
      if (answer.statusCode >= 400 && url !== '/readyz') {
        requireErrorBody(answer.statusCode, parsed, answer.headers['x-request-id'])
      }
      return { status: answer.statusCode, body: parsed, headers: answer.headers }
    },
    async signUp({ providerKey = newSecret('provider key', 'sk-') } = {}) {
      const { body } = await chowder.call('POST', '/v1/organization/signup', { body: { name: 'Acme' } })
      const key: string = body.api_key
      if (providerKey !== null) {
        await chowder.call('PATCH', '/v1/organization', { key, body: { model_api_keys: { anthropic: providerKey } } })
      }
      return { id: body.organization.id, key }
    },
    async startWorker(concurrency = 8) {
      const settings = {
        ...shared,
        concurrency,
        timeouts,
        intervals: options.intervals ?? quickIntervals,
        maintenance: options.maintenance ?? quickMaintenance,
      }
      const worker = await createWorker(
        {
          ...parts,
          processId: workers.length === 0 ? processId : newId(),
          alive: () => [],
          regions: { served: regions.all },
          ...options.receivers,
        },
        settings,
        new AbortController().signal,
      )
      workers.push(worker)
      return worker
    },
    async markReady(id, endpoint) {
      await database.pool.query(
        'UPDATE instances SET observed_generation = generation, ready_at = now(), endpoint = $2 WHERE id = $1',
        [id, endpoint],
      )
    },
    async createReady(key, endpoint) {
      const { body } = await chowder.call('POST', '/v1/instances', { key, body: { name: 'agent' } })
      await chowder.markReady(body.id, endpoint)
      return body.id
    },
    async close() {
      await Promise.all(workers.map((worker) => worker.stop()))
      await api.close()
      await queue.close()
      keepText('log', logged.join(''))
      if (!options.database) await database.drop()
    },
  }
  return chowder
}
