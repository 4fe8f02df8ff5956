import { readFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { drizzle } from 'drizzle-orm/node-postgres'
import { migrate as applyMigrations } from 'drizzle-orm/node-postgres/migrator'
import type pg from 'pg'

const folder = new URL('../../migrations/', import.meta.url)
/** Any number: it only has to be the same in every process. */
const advisoryLock = 7_240_611
const waitForOthersMs = 60_000

/**
 * Brings the schema up to date and then runs `also` under the same lock, so that processes that migrate at once do it
 * one after another. Each migration is a transaction: a crash leaves the schema before or after it.
 */
export async function migrate(pool: pg.Pool, also: (client: pg.PoolClient) => Promise<void>): Promise<void> {
  const client = await pool.connect()
  client.on('error', () => {}) // what is asked of it fails
  try {
    await client.query(`SET lock_timeout = ${waitForOthersMs}`)
    await client.query('SELECT pg_advisory_lock($1)', [advisoryLock])
    await applyMigrations(drizzle(client), { migrationsFolder: fileURLToPath(folder) })
    await also(client)
  } finally {
    client.release(true) // its session, and with it the lock, ends here
  }
}

/** How many of the known migrations the database has not seen; a database that is ahead counts as current. */
export async function pendingMigrations(pool: pg.Pool): Promise<number> {
  const { entries } = JSON.parse(await readFile(new URL('meta/_journal.json', folder), 'utf8')) as {
    entries: { when: number }[]
  }
  const { rows } = await pool.query<{ exists: boolean }>(
    `SELECT to_regclass('drizzle.__drizzle_migrations') IS NOT NULL AS exists`,
  )
  if (!rows[0]?.exists) return entries.length
  const last = await pool.query<{ at: string | null }>('SELECT max(created_at) AS at FROM drizzle.__drizzle_migrations')
  return entries.filter(({ when }) => when > Number(last.rows[0]?.at ?? 0)).length
}
