import { and, eq, sql } from 'drizzle-orm'
import pg from 'pg'
import { createCallers } from '#api/keys/callers.ts'
import { eraseDeleted } from '#api/organization/delete.ts'
import { createEphemeralSessionCleanup } from '#api/responses/chat/ephemeral-sessions.ts'
import { deleteExpiredResponses } from '#api/responses/store/expiry.ts'
import { type BillingSettings, createBilling } from '#api/subscription/stripe.ts'
import { syncSubscriptions } from '#api/subscription/sync.ts'
import { createDb, type Db } from '#database/client.ts'
import { rememberFirst } from '#database/installation.ts'
import { migrate, pendingMigrations } from '#database/migrate.ts'
import { instances } from '#database/schema.ts'
import { changedBy, clearOldEvents } from '#history/record.ts'
import { clearExpiredAnswers } from '#http/idempotency.ts'
import { connectLimits } from '#http/rate-limit.ts'
import { eraseTerminated } from '#instances/erase.ts'
import { createFindGateway, createFindSummary } from '#instances/find.ts'
import { createAskGateway } from '#instances/gateway/ask.ts'
import { raiseGeneration } from '#instances/intent.ts'
import { isRunningAndFree } from '#instances/status.ts'
import { createBacklogMetrics } from '#lifecycle/backlog.ts'
import { createQueue, migrateQueue, type ReconcileQueue } from '#lifecycle/queue.ts'
import type { QueueBackend } from '#lifecycle/queue-backend.ts'
import { defaultTimeouts } from '#lifecycle/step.ts'
import { defaultRelease, openclawVersion } from '#openclaw/releases.ts'
import type { Config } from '#platform/config.ts'
import { dataFolder, hostId, prepareDataFolder } from '#platform/data-folder.ts'
import { atMost } from '#platform/deadline.ts'
import type { Logger } from '#platform/log.ts'
import { serveMetrics } from '#platform/metrics.ts'
import type { PeriodicTask } from '#platform/periodic.ts'
import { findSecretKey } from '#platform/secret-key.ts'
import { createVault, type Vault } from '#platform/secrets.ts'
import { StartupError } from '#platform/startup-error.ts'
import { measureDriver } from '#sandbox/measured.ts'
import type { CreatedDriver } from './sandboxes.ts'
import { createSandboxes, type SandboxesOf } from './sandboxes.ts'
import { welcome } from './welcome.ts'

export const roles = ['all', 'api', 'worker', 'migrate'] as const
export type Role = (typeof roles)[number]

const readinessTimeoutMs = 1000
const poolSize = 10
const connectTimeoutMs = 5000
/** No statement of ours takes long; one that does is ended, so that the pool is not used up by it. */
const statementTimeoutMs = 15_000
const stopAgentsGraceMs = 10_000
const closeTimeoutMs = 5000
const eraseEveryMs = 5000
const billingEveryMs = 10_000
const clearEveryMs = 60_000
const clearTimeoutMs = 10 * 60_000

/** Opens what instances run in; only a driver whose agents are this host's own can stop them all with Chowder. */
export type CreateSandboxes = (what: SandboxesOf) => Promise<CreatedDriver>

/** What must be closed, in the order it was opened; closed the other way round. */
export type Closers = { close(reason: { interrupted: boolean }): Promise<unknown> }[]

const postgresConnection = (url: string): pg.PoolConfig => ({ connectionString: url })

/** Opens the database: the given one, which must be migrated, or the embedded one, which is migrated here. */
async function createDatabase(
  config: Config,
  role: Role,
  dataDir: string,
  log: Logger,
  closers: Closers,
  signal: AbortSignal,
) {
  // Without its database the process can do nothing any more: it ends, and whoever keeps it running starts it again.
  const fail = (error: Error) => {
    setImmediate(() => {
      throw error
    })
  }
  let connection: pg.PoolConfig
  if (config.DATABASE_URL) {
    connection = postgresConnection(config.DATABASE_URL)
  } else {
    log.info({ dataDir }, 'starting the embedded PostgreSQL')
    const { startEmbeddedPostgres } = await import('#database/embedded.ts')
    const embedded = await startEmbeddedPostgres({ dataDir, log, signal, onFatal: fail })
    closers.push({ close: () => embedded.stop() })
    connection = embedded.connection
  }
  const pool = new pg.Pool({
    ...connection,
    max: poolSize,
    connectionTimeoutMillis: connectTimeoutMs,
    statement_timeout: statementTimeoutMs,
    query_timeout: statementTimeoutMs + connectTimeoutMs, // should the server never answer
    keepAlive: true,
    keepAliveInitialDelayMillis: 10_000,
    application_name: `chowder-${role}`,
  })
  const db = createDb(pool)
  pool.on('error', (error) => log.warn({ err: error }, 'an idle database connection was lost')) // else it ends the process
  closers.push({ close: () => atMost(closeTimeoutMs, pool.end()) })

  const backend: QueueBackend = config.REDIS_URL
    ? { kind: 'redis', url: config.REDIS_URL }
    : { kind: 'postgres', connection: { ...connection, application_name: `chowder-${role}-queue` } }
  if (role === 'migrate' || !config.DATABASE_URL) {
    // A pool of its own: a migration takes as long as the data it moves.
    const migrating = new pg.Pool({ ...connection, max: 1, application_name: 'chowder-migrate' })
    migrating.on('error', () => {}) // what is asked of it fails
    await migrate(migrating, async (client) => {
      if (backend.kind === 'postgres') await migrateQueue(client)
    }).finally(() => migrating.end())
  }
  const pending = await pendingMigrations(pool)
  if (pending > 0) {
    throw new StartupError(`The database's schema is ${pending} migrations behind. Run npm run migrate first.`)
  }
  return { pool, db, backend }
}

async function createQueueOf(backend: QueueBackend, log: Logger, closers: Closers): Promise<ReconcileQueue> {
  const queue = createQueue(backend, log)
  closers.push({ close: () => queue.close() })
  await queue.check().catch((cause: unknown) => {
    throw new StartupError('The queue has no schema in the database, or an old one. Run npm run migrate first.', {
      cause,
    })
  })
  return queue
}

/** Fails closed when the key is not the one that this database's secrets were sealed with. */
async function createVaultOf(db: Db, config: Config, dataDir: string): Promise<Vault> {
  const vault = createVault(await findSecretKey(config.CHOWDER_SECRET_KEY, dataDir))
  const place = 'installation/secret-key-check/value'
  const sealed = await rememberFirst(db, 'secret-key-check', vault.seal('chowder', place))
  try {
    vault.unseal(sealed, place)
  } catch (cause) {
    throw new StartupError('The secret key is not the one that this database was sealed with. Restore the old one.', {
      cause,
    })
  }
  return vault
}

/** The local driver is for one host: agents of another one could be neither seen nor reached from here. */
async function claimHost(db: Db, dataDir: string): Promise<void> {
  const own = await hostId(dataDir)
  const known = await rememberFirst(db, 'local-host-id', own)
  if (known === own) return
  throw new StartupError(
    `SANDBOX_DRIVER=local is for one host, and this database's agents are on another (or CHOWDER_DATA_DIR is not theirs). For more than one host use SANDBOX_DRIVER=docker, with a DOCKER_HOST that all of them reach.`,
  )
}

/** Null without Stripe's settings: they come all together or not at all. */
function stripeSettings(config: Config, publicUrl: () => string): BillingSettings | null {
  const { STRIPE_SECRET_KEY, STRIPE_WEBHOOK_SECRET, STRIPE_PRICE_CRAB, STRIPE_PRICE_LOBSTER } = config
  if (!STRIPE_SECRET_KEY || !STRIPE_WEBHOOK_SECRET || !STRIPE_PRICE_CRAB || !STRIPE_PRICE_LOBSTER) return null
  return {
    secretKey: STRIPE_SECRET_KEY,
    webhookSecret: STRIPE_WEBHOOK_SECRET,
    prices: { crab: STRIPE_PRICE_CRAB, lobster: STRIPE_PRICE_LOBSTER },
    apiUrl: config.STRIPE_API_URL,
    returnUrl: () => config.BILLING_RETURN_URL ?? publicUrl(),
  }
}

/** Rows whose agents are about to be stopped with Chowder: due, so that the next start brings them back. */
const markForRestart = (db: Db, driver: string) =>
  db
    .update(instances)
    .set({
      ...raiseGeneration('restart'),
      changedBy: changedBy({ type: 'instance.due', reason: 'Chowder was stopped with its agents.' }),
    })
    .where(and(isRunningAndFree, eq(instances.sandboxDriver, driver)))

/**
 * Composes Chowder from its parts and sets it going in a role: resolves once it serves or works, or has migrated. What it
 * opens goes into `closers` as it opens it, also when it fails half-way: closing is the caller's. Sandboxes are those of
 * SANDBOX_DRIVER unless `open` opens others. Throws StartupError with words for whoever started it.
 */
export async function start(
  config: Config,
  role: Role,
  log: Logger,
  closers: Closers,
  signal: AbortSignal,
  open: CreateSandboxes = createSandboxes,
): Promise<void> {
  const dataDir = dataFolder(config.CHOWDER_DATA_DIR)
  await prepareDataFolder(dataDir)
  const { pool, db, backend } = await createDatabase(config, role, dataDir, log, closers, signal)
  if (role === 'migrate') {
    log.info('the schema is up to date')
    return
  }
  signal.throwIfAborted()
  const vault = await createVaultOf(db, config, dataDir)
  const sandboxes = measureDriver(await open({ config, dataDir, db, log }))
  const { stopAll } = sandboxes
  if (stopAll) await claimHost(db, dataDir)
  const queue = await createQueueOf(backend, log, closers)
  if (role === 'all') {
    closers.push({
      async close({ interrupted }) {
        if (!interrupted) return
        if (!stopAll) return log.info('the agents go on running in their containers; the next start adopts them')
        log.info('stopping the agents')
        await markForRestart(db, sandboxes.name).catch((error: unknown) => {
          log.warn({ err: error }, 'the agents could not be marked; the next start finds them stopped')
        })
        await stopAll({ graceMs: stopAgentsGraceMs }, AbortSignal.timeout(stopAgentsGraceMs * 2))
      },
    })
  }
  const baseUrls = {
    anthropic: config.ANTHROPIC_BASE_URL,
    openai: config.OPENAI_BASE_URL,
    gemini: config.GEMINI_BASE_URL,
  }

  let publicUrl = ''
  const stripe = stripeSettings(config, () => publicUrl)
  const billing = stripe && (await createBilling(stripe))
  const findSummary = createFindSummary(db)
  const gatewayOf = createFindGateway(db, vault, findSummary)
  const askGateway = createAskGateway(gatewayOf)
  if (role !== 'worker') {
    const callers = createCallers(db, log)
    closers.push(callers)
    const limitsRedis = config.REDIS_URL ? connectLimits(config.REDIS_URL, log) : null
    closers.push({ close: async () => limitsRedis?.disconnect() })
    const { buildApp } = await import('#app.ts')
    const app = await buildApp({
      db,
      vault,
      queue,
      log,
      sandboxes,
      baseUrls,
      sandboxDriver: sandboxes.name,
      defaultTier: config.CHOWDER_DEFAULT_TIER,
      publicUrl: () => publicUrl,
      findCaller: callers.find,
      forgetCaller: callers.forget,
      findSummary,
      gatewayOf,
      askGateway,
      forgetGateway: gatewayOf.forget,
      clawhubUrl: config.CLAWHUB_REGISTRY,
      filesMaxBytes: config.FILES_MAX_BYTES,
      billing,
      limits: {
        requestsPerMinute: config.RATE_LIMIT_PER_MINUTE,
        signupsPerHour: config.SIGNUP_LIMIT_PER_HOUR,
        failedAuthPerMinute: config.FAILED_AUTH_LIMIT_PER_MINUTE,
        redis: limitsRedis,
      },
      trustedProxies: config.TRUST_PROXY,
      readiness: () => readiness(pool, queue),
    })
    const listening = await app
      .listen({ host: config.HOST, port: config.PORT })
      .catch((error: NodeJS.ErrnoException) => {
        if (error.code === 'EADDRINUSE') throw portTaken(config)
        throw error
      })
    closers.push({
      async close() {
        // Whoever still sends or reads slowly is cut off: agents and database are to be stopped in time.
        const cut = setTimeout(() => app.server.closeAllConnections(), closeTimeoutMs)
        await app.close().finally(() => clearTimeout(cut))
      },
    })
    publicUrl = (config.CHOWDER_PUBLIC_URL ?? listening).replace(/\/+$/, '')
  }

  if (role !== 'api') {
    const preparing = new AbortController()
    const deps = {
      db,
      vault,
      sandboxes,
      baseUrls,
      clawhubUrl: config.CLAWHUB_REGISTRY,
      timeouts: defaultTimeouts,
      queue,
      log,
    }
    const others: PeriodicTask[] = [
      {
        name: 'erasing deleted organizations',
        everyMs: eraseEveryMs,
        timeoutMs: clearTimeoutMs,
        run: () => eraseDeleted(db, log),
      },
      {
        name: 'erasing terminated instances',
        everyMs: clearEveryMs,
        timeoutMs: clearTimeoutMs,
        run: async () => void (await eraseTerminated(db)),
      },
      {
        name: 'clearing idempotency answers',
        everyMs: clearEveryMs,
        timeoutMs: clearTimeoutMs,
        run: () => clearExpiredAnswers(db),
      },
      { name: 'clearing events', everyMs: clearEveryMs, timeoutMs: clearTimeoutMs, run: () => clearOldEvents(db) },
      {
        name: 'deleting ephemeral sessions',
        everyMs: eraseEveryMs,
        timeoutMs: clearTimeoutMs,
        run: createEphemeralSessionCleanup(db, askGateway, log),
      },
      {
        name: 'clearing responses',
        everyMs: clearEveryMs,
        timeoutMs: clearTimeoutMs,
        run: () => deleteExpiredResponses(db),
      },
    ]
    if (billing) {
      const run = (stopping: AbortSignal) => syncSubscriptions({ db, billing, log }, stopping)
      others.push({ name: 'syncing subscriptions', everyMs: billingEveryMs, timeoutMs: clearTimeoutMs, run })
    }
    const { defaultIntervals, startWorker } = await import('#lifecycle/worker.ts')
    const worker = await startWorker(deps, queue, config.WORKER_CONCURRENCY, defaultIntervals, signal, others)
    closers.push({ close: () => worker.stop() })
    closers.push({ close: async () => preparing.abort() })
    void sandboxes
      .prepare(defaultRelease, (line) => log.info(line), preparing.signal)
      .then(() => log.info(`OpenClaw ${openclawVersion(defaultRelease)} is ready on this host`))
      .catch((error: unknown) => {
        if (!preparing.signal.aborted)
          log.error({ err: error }, 'OpenClaw could not be prepared; the next instance tries again')
      })
  }
  // Last: that it answers says that the process does its work.
  if (config.METRICS_PORT !== undefined) {
    const sources = role === 'api' ? [] : [createBacklogMetrics({ db, queue })]
    const { port, close } = await serveMetrics({ host: config.METRICS_HOST, port: config.METRICS_PORT }, sources, log)
    closers.push({ close })
    log.info({ port }, 'metrics are served at /metrics')
  }
  log.info({ url: publicUrl || undefined }, `Chowder is running as ${role}`)
  if (role === 'all') {
    process.stderr.write(
      welcome({
        url: publicUrl,
        dataDir,
        database: config.DATABASE_URL ? 'DATABASE_URL' : 'embedded PostgreSQL',
        queue: config.REDIS_URL ? 'REDIS_URL' : 'in PostgreSQL',
        isolation: sandboxes.isolation,
        stopsAgents: stopAll !== undefined,
        release: `OpenClaw ${openclawVersion(defaultRelease)}`,
      }),
    )
  }
}

const portTaken = ({ HOST, PORT }: Config) =>
  new StartupError(`Port ${PORT} on ${HOST} is taken by another program. Set PORT to a free one, or end that program.`)

async function readiness(pool: pg.Pool, queue: ReconcileQueue) {
  const deadline = AbortSignal.timeout(readinessTimeoutMs)
  const late = new Promise<boolean>((answer) => deadline.addEventListener('abort', () => answer(false), { once: true }))
  const answered = pool.query('select 1').then(
    () => true,
    () => false,
  )
  const [database, queueAnswers] = await Promise.all([Promise.race([answered, late]), queue.ping(deadline)])
  return { database, queue: queueAnswers }
}
