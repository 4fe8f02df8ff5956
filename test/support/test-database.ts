import { randomUUID } from 'node:crypto'
import pg from 'pg'
import { inject } from 'vitest'
import { createDb, type Db } from '#database/client.ts'
import { requireNoSecrets } from './canary/search.ts'
import { inDatabase, templateDatabase } from './servers.ts'

export interface TestDatabase {
  db: Db
  pool: pg.Pool
  connection: pg.PoolConfig
  /** Throws an error when a secret stood in the clear in it, in Redis, or in what was kept for this search. */
  drop(): Promise<void>
}

/** The address of a database, for a process of its own. */
export const urlOf = ({ connectionString, user, password, host = '', port, database }: pg.PoolConfig): string =>
  connectionString ?? `postgresql://${user}:${password}@${encodeURIComponent(host)}:${port}/${database}`

/** Makes a database for a test file: a clone of the migrated template. */
export async function cloneDatabase(): Promise<TestDatabase> {
  const name = `test_${randomUUID().replaceAll('-', '')}`
  const server = inject('postgres')
  await administer(`CREATE DATABASE ${name} TEMPLATE ${templateDatabase}`)
  const connection = inDatabase(server, name)
  const pool = new pg.Pool({ ...connection, max: 10 })
  pool.on('error', () => {}) // dropped while idle, at the end
  return {
    db: createDb(pool),
    pool,
    connection,
    async drop() {
      try {
        await requireNoSecrets({ databases: [connection], redisUrl: inject('redisUrl') })
      } finally {
        await pool.end()
        await administer(`DROP DATABASE ${name} WITH (FORCE)`)
      }
    },
  }
}

async function administer(statement: string): Promise<void> {
  const admin = new pg.Client(inject('postgres'))
  await admin.connect()
  try {
    // The template is busy while another file clones it.
    for (let attempt = 0; ; attempt += 1) {
      try {
        return void (await admin.query(statement))
      } catch (error) {
        const isBusy = error instanceof Error && 'code' in error && error.code === '55006'
        if (!isBusy || attempt >= 100) throw error
        await new Promise((resolve) => setTimeout(resolve, 100))
      }
    }
  } finally {
    await admin.end()
  }
}
