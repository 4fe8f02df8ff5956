import { readFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { drizzle } from 'drizzle-orm/node-postgres'
import { migrate as applyMigrations } from 'drizzle-orm/node-postgres/migrator'
import type pg from 'pg'

const folder = new URL('../../migrations/', import.meta.url)
/** An arbitrary number, the same in every process. */
const advisoryLock = 7_240_611
/** Timeout for another process that migrates. */
const turnTimeoutMs = 60_000
/**
 * Timeout for a lock on a table. While a migration waits for one, every later statement on the table waits behind it:
 * so it gives up soon and tries again, `maxAttempts` times, a minute in all.
 */
const lockTimeoutMs = 3000
const maxAttempts = 12
const pauseMs = 2000

/** The codes of PostgreSQL for a lock timeout, and for a deadlock that it has resolved. */
const lockFaults = ['55P03', '40P01']

const isLockFault = (error: unknown): boolean => {
  const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error
  return cause instanceof Error && 'code' in cause && lockFaults.includes(String(cause.code))
}

/**
 * Applies the pending migrations, and then runs `also`, under a lock: concurrent processes migrate one after another.
 * The pending ones are one transaction, so a crash leaves the schema before or after them. Throws when other statements
 * hold a needed lock for more than a minute.
 */
export async function migrate(
  pool: pg.Pool,
  also: (client: pg.PoolClient) => Promise<void>,
  from: URL = folder,
): Promise<void> {
  const client = await pool.connect()
  client.on('error', () => {}) // its statements fail with the error
  try {
    await client.query(`SET lock_timeout = ${turnTimeoutMs}`)
    await client.query('SELECT pg_advisory_lock($1)', [advisoryLock])
    await client.query(`SET lock_timeout = ${lockTimeoutMs}`)
    for (let attempt = 1; ; attempt += 1) {
      try {
        await applyMigrations(drizzle(client), { migrationsFolder: fileURLToPath(from) })
        break
      } catch (error) {
        if (attempt === maxAttempts || !isLockFault(error)) throw error
      }
      await sleep(pauseMs)
    }
    await also(client)
  } finally {
    client.release(true) // closes the connection, which releases the lock
  }
}

/** The number of pending migrations. A database with newer migrations counts as current. */
export async function pendingMigrations(pool: pg.Pool, from: URL = folder): Promise<number> {
  const { entries } = JSON.parse(await readFile(new URL('meta/_journal.json', from), 'utf8')) as {
    entries: { when: number }[]
  }
  const { rows } = await pool.query<{ exists: boolean }>(
    `SELECT to_regclass('drizzle.__drizzle_migrations') IS NOT NULL AS exists`,
  )
  if (!rows[0]?.exists) return entries.length
  const last = await pool.query<{ when: string | null }>(
    'SELECT max(created_at) AS "when" FROM drizzle.__drizzle_migrations',
  )
  return entries.filter(({ when }) => when > Number(last.rows[0]?.when ?? 0)).length
}
