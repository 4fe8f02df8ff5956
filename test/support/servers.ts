import { spawn } from 'node:child_process'
import { chmod, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Redis } from 'ioredis'
import pTimeout from 'p-timeout'
import pg from 'pg'
import { pino } from 'pino'
import type { TestProject } from 'vitest/node'
import { startEmbeddedPostgres } from '#database/embedded.ts'
import { migrate } from '#database/migrate.ts'
import { migrateQueue } from '#lifecycle/queue/queue.ts'
import { provideProgram } from './debian-package.ts'
import { freePort } from './free-port.ts'

declare module 'vitest' {
  interface ProvidedContext {
    /** How to reach the PostgreSQL server of this run. */
    postgres: pg.PoolConfig
    /** null when there is no Redis on this machine: the tests that need one are reported as skipped. */
    redisUrl: string | null
  }
}

export const templateDatabase = 'chowder_template'
const startTimeoutMs = 15_000

async function startRedis(): Promise<{ url: string; stop(): Promise<void> } | null> {
  if (process.env.TEST_REDIS_URL) return { url: process.env.TEST_REDIS_URL, stop: async () => {} }
  if (!(await provideProgram('redis-server', 'redis-server'))) {
    const why = 'no redis-server on PATH, none could be installed, and TEST_REDIS_URL is not set'
    if (process.env.CI) throw new Error(`the Redis half of the tests cannot run: ${why}`)
    process.stderr.write(`\nSKIPPED: the Redis half of the tests does not run: ${why}.\n\n`)
    return null
  }
  const port = await freePort()
  const child = spawn(
    'redis-server',
    ['--port', String(port), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no'],
    {
      stdio: 'ignore',
    },
  )
  const url = `redis://127.0.0.1:${port}`
  const probe = new Redis(url, { retryStrategy: () => 50, maxRetriesPerRequest: null })
  probe.on('error', () => {})
  await pTimeout(probe.ping(), { milliseconds: startTimeoutMs, message: 'redis-server does not answer' })
  probe.disconnect()
  const ended = new Promise((resolve) => child.once('exit', resolve))
  return {
    url,
    async stop() {
      child.kill()
      await ended
    },
  }
}

async function startPostgres(): Promise<{ connection: pg.PoolConfig; stop(): Promise<void> }> {
  if (process.env.TEST_DATABASE_URL) {
    return { connection: { connectionString: process.env.TEST_DATABASE_URL }, stop: async () => {} }
  }
  const dataDir = await mkdtemp(join(tmpdir(), 'chowder-test-'))
  await chmod(dataDir, 0o711) // as root the database runs as another user
  const embedded = await startEmbeddedPostgres({ dataDir, log: pino({ level: 'silent' }), durable: false })
  return {
    connection: embedded.connection,
    async stop() {
      await embedded.stop()
      await rm(dataDir, { recursive: true, force: true })
    },
  }
}

/** Makes the database that each test file clones: migrated once for the run. */
async function makeTemplate(connection: pg.PoolConfig): Promise<void> {
  const admin = new pg.Client(connection)
  await admin.connect()
  await admin.query(`DROP DATABASE IF EXISTS ${templateDatabase} WITH (FORCE)`)
  await admin.query(`CREATE DATABASE ${templateDatabase}`)
  await admin.end()
  const pool = new pg.Pool(inDatabase(connection, templateDatabase))
  await migrate(pool, migrateQueue)
  await pool.end()
}

/** The same server, another database. */
export function inDatabase({ connectionString, ...rest }: pg.PoolConfig, database: string): pg.PoolConfig {
  if (connectionString === undefined) return { ...rest, database }
  const url = new URL(connectionString)
  url.pathname = `/${database}`
  return { ...rest, connectionString: url.href }
}

/** A global setup of Vitest: starts PostgreSQL and Redis once for all files of a project. */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const [postgres, redis] = await Promise.all([startPostgres(), startRedis()])
  await makeTemplate(postgres.connection)
  project.provide('postgres', postgres.connection)
  project.provide('redisUrl', redis?.url ?? null)
  return async () => {
    await Promise.all([postgres.stop(), redis?.stop()])
  }
}
