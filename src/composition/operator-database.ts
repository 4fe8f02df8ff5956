import { access } from 'node:fs/promises'
import { join } from 'node:path'
import pg from 'pg'
import { createDb, type Db } from '#database/client.ts'
import { reachEmbeddedPostgres, startEmbeddedPostgres } from '#database/embedded.ts'
import { pendingMigrations } from '#database/migrate.ts'
import type { Config } from '#platform/config.ts'
import { dataFolder } from '#platform/data-folder.ts'
import { createLog } from '#platform/log.ts'

const connectTimeoutMs = 5000
const statementTimeoutMs = 60_000

export interface OperatorDatabase {
  db: Db
  pool: pg.Pool
  /** For whoever opens further pools, as the queue does. */
  connection: pg.PoolConfig
  /** How many migrations the schema is behind. */
  pending: number
  close(): Promise<void>
}

/** The database as Chowder opens it; beside a running one its embedded PostgreSQL is joined, else it is started. */
async function reach(config: Config, command: string): Promise<{ connection: pg.PoolConfig; close(): Promise<void> }> {
  if (config.DATABASE_URL) return { connection: { connectionString: config.DATABASE_URL }, close: async () => {} }
  const dataDir = dataFolder(config.CHOWDER_DATA_DIR)
  await access(join(dataDir, 'postgres', 'data')).catch(() => {
    throw new Error(`There is no database in ${dataDir}. Set CHOWDER_DATA_DIR or DATABASE_URL as Chowder has them.`)
  })
  const running = await reachEmbeddedPostgres(dataDir)
  if (running) return { connection: running, close: async () => {} }
  const started = await startEmbeddedPostgres({ dataDir, log: createLog('warn', command, false) })
  return { connection: started.connection, close: () => started.stop() }
}

/**
 * Opens the database for an operator's command, with a running Chowder beside it or without one. Throws an Error in words
 * for the operator when there is none, or it cannot be reached. Closing leaves it as it was found.
 */
export async function openForOperator(config: Config, command: string): Promise<OperatorDatabase> {
  const { connection, close } = await reach(config, command)
  const pool = new pg.Pool({
    ...connection,
    max: 1,
    connectionTimeoutMillis: connectTimeoutMs,
    statement_timeout: statementTimeoutMs,
    query_timeout: statementTimeoutMs + connectTimeoutMs,
    application_name: `chowder-${command}`,
  })
  // One that is lost while nobody asks anything of it, also by the database's own end below, must not end the command.
  pool.on('error', () => {})
  const end = async () => {
    await pool.end()
    await close()
  }
  try {
    return { db: createDb(pool), pool, connection, pending: await pendingMigrations(pool), close: end }
  } catch (error) {
    await end()
    throw error
  }
}
