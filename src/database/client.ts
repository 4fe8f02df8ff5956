import { drizzle, type NodePgDatabase } from 'drizzle-orm/node-postgres'
import type pg from 'pg'

export type Db = NodePgDatabase & { $client: pg.Pool }

export type Transaction = Parameters<Parameters<Db['transaction']>[0]>[0]

/** What runs statements: the pool, or one connection of it inside a transaction. */
export type Statements = Pick<Db, 'select' | 'insert' | 'update' | 'delete' | 'execute'> & {
  $client: Pick<pg.Pool, 'query'>
}

/**
 * The query builder over a pool that has no connections yet; opens nothing itself. A connection that dies in the middle of
 * a transaction fails what is asked of it, and not the process.
 */
export function openDb(pool: pg.Pool): Db {
  pool.on('connect', (client) => client.on('error', () => {}))
  return drizzle({ client: pool, casing: 'snake_case' })
}

/** Runs all of it in one transaction; throws what `act` throws, and then nothing of it was done. */
export async function inTransaction<T>(db: Db, act: (statements: Statements) => Promise<T>): Promise<T> {
  const client = await db.$client.connect()
  try {
    return await drizzle({ client, casing: 'snake_case' }).transaction((tx) =>
      act(Object.assign(tx, { $client: client })),
    )
  } finally {
    client.release()
  }
}

/** Repeats a statement, or a transaction, once if PostgreSQL ended it to break a deadlock (40P01): nothing of it was done. */
export async function onceMoreOnDeadlock<T>(statement: () => Promise<T>): Promise<T> {
  try {
    return await statement()
  } catch (error) {
    const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error
    if (cause instanceof Error && 'code' in cause && cause.code === '40P01') return statement()
    throw error
  }
}
