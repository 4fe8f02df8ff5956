import { access } from 'node:fs/promises'
import { join } from 'node:path'
import pg from 'pg'
import { connectionLifetimeSeconds, createDb, type Db } from '#database/client.ts'
import { explainConnection } from '#database/connection-fault.ts'
import { migrate, pendingMigrations } from '#database/migrate.ts'
import { StartupError } from '#errors/startup-error.ts'
import { dataFolder } from '#platform/data-folder.ts'
import { createLog } from '#platform/log.ts'
import { type Config, unknownSettings } from '#settings/config.ts'
import type { Startup } from './startup.ts'

const connectTimeoutMs = 5000
const servingTimeoutMs = 15_000
const operatorPool = { max: 1, statementTimeoutMs: 60_000 }

/** The timeout ends slow statements, so that they do not use up the pool. */
function createPool(
  connection: pg.PoolConfig,
  name: string,
  { max, statementTimeoutMs }: typeof operatorPool,
): pg.Pool {
  return new pg.Pool({
    ...connection,
    max,
    maxLifetimeSeconds: connectionLifetimeSeconds,
    connectionTimeoutMillis: connectTimeoutMs,
    statement_timeout: statementTimeoutMs,
    query_timeout: statementTimeoutMs + connectTimeoutMs, // for a server that never answers
    keepAlive: true,
    keepAliveInitialDelayMillis: 10_000,
    application_name: name,
  })
}

export const schemaIsBehind = (migrations: number): string =>
  `The database's schema is ${migrations} migrations behind. Run npm run migrate first.`

/**
 * Opens the database: that of DATABASE_URL, or the embedded one. The schema of the first must be current; the second is
 * migrated here. In the role `migrate` both are migrated. Throws StartupError when the schema is outdated, or the
 * database of DATABASE_URL cannot be used.
 */
export async function openDatabase(startup: Startup): Promise<{ db: Db; connection: pg.PoolConfig }> {
  const { role, config, log, drain } = startup
  const connection = config.DATABASE_URL ? { connectionString: config.DATABASE_URL } : await openEmbedded(startup)
  const serving = { max: config.DATABASE_POOL, statementTimeoutMs: servingTimeoutMs }
  const pool = createPool(connection, `chowder-${role}`, serving)
  const db = createDb(pool)
  // Without a listener the error would end the process. In a drain the embedded database may end a connection first.
  pool.on('error', (error) => {
    if (!drain.signal.aborted) log.warn({ err: error }, 'an idle database connection was lost')
  })
  drain.add('connections', () => pool.end())
  const pending = await explained(config, async () => {
    if (role === 'migrate' || !config.DATABASE_URL) await migrateSchema(connection, config)
    return pendingMigrations(pool)
  })
  if (pending > 0) throw new StartupError(schemaIsBehind(pending))
  return { db, connection }
}

/** Runs the first statements on the database: turns a failure of DATABASE_URL into a StartupError. */
const explained = <T>({ DATABASE_URL }: Config, act: () => Promise<T>): Promise<T> =>
  act().catch((error: unknown) => {
    throw DATABASE_URL ? explainConnection(error, DATABASE_URL) : error
  })

async function openEmbedded({ dataDir, log, drain }: Startup): Promise<pg.PoolConfig> {
  log.info({ dataDir }, 'starting the embedded PostgreSQL')
  const { startEmbeddedPostgres } = await import('#database/embedded.ts')
  // Without its database the process is useless: it crashes, and its supervisor restarts it.
  const onFatal = (error: Error) => {
    setImmediate(() => {
      throw error
    })
  }
  const embedded = await startEmbeddedPostgres({ dataDir, log, signal: drain.signal, onFatal })
  drain.add('postgres', () => embedded.stop())
  return embedded.connection
}

/** Uses its own pool without timeouts: the duration of a migration depends on the data. */
async function migrateSchema(connection: pg.PoolConfig, config: Config): Promise<void> {
  const { migrateQueue } = await import('#lifecycle/queue/queue.ts')
  const pool = new pg.Pool({ ...connection, max: 1, application_name: 'chowder-migrate' })
  pool.on('error', () => {}) // the statements of a lost connection fail
  await migrate(pool, async (client) => {
    if (!config.REDIS_URL) await migrateQueue(client)
  }).finally(() => pool.end())
}

export interface OperatorDatabase {
  db: Db
  pool: pg.Pool
  /** For further pools, such as the queue's. */
  connection: pg.PoolConfig
  /** The number of missing migrations. */
  pending: number
  close(): Promise<void>
}

/**
 * Opens the database for a command of the operator, whether or not Chowder runs beside it: joins the running embedded
 * PostgreSQL, or starts it. Throws an Error for the operator when there is no database, or it cannot be reached. Prints
 * probably misspelt variables on standard error. Closing leaves the database as it was found.
 */
export async function openForOperator(config: Config, command: string): Promise<OperatorDatabase> {
  for (const sentence of unknownSettings()) process.stderr.write(`${sentence}\n`)
  const { connection, close } = await joinDatabase(config, command)
  const pool = createPool(connection, `chowder-${command}`, operatorPool)
  // An idle connection may be lost, also by the stop of the database below: that must not end the command.
  pool.on('error', () => {})
  const end = async () => {
    await pool.end()
    await close()
  }
  try {
    const pending = await explained(config, () => pendingMigrations(pool))
    return { db: createDb(pool), pool, connection, pending, close: end }
  } catch (error) {
    await end()
    throw error
  }
}

async function joinDatabase(config: Config, command: string): Promise<Pick<OperatorDatabase, 'connection' | 'close'>> {
  if (config.DATABASE_URL) return { connection: { connectionString: config.DATABASE_URL }, close: async () => {} }
  const dataDir = dataFolder(config.CHOWDER_DATA_DIR)
  await access(join(dataDir, 'postgres', 'data')).catch(() => {
    throw new Error(`There is no database in ${dataDir}. Set CHOWDER_DATA_DIR or DATABASE_URL as Chowder has them.`)
  })
  const { reachEmbeddedPostgres, startEmbeddedPostgres } = await import('#database/embedded.ts')
  const running = await reachEmbeddedPostgres(dataDir)
  if (running) return { connection: running, close: async () => {} }
  const started = await startEmbeddedPostgres({
    dataDir,
    log: createLog({ LOG_LEVEL: 'warn' }, command, false),
  })
  return { connection: started.connection, close: () => started.stop() }
}
