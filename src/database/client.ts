import { drizzle, type NodePgDatabase } from 'drizzle-orm/node-postgres'
import type pg from 'pg'

export type Db = NodePgDatabase & { $client: pg.Pool }

export type Transaction = Parameters<Parameters<Db['transaction']>[0]>[0]

/** The query builder over a pool; opens nothing itself. */
export const openDb = (pool: pg.Pool): Db => drizzle({ client: pool, casing: 'snake_case' })

/** Repeats a statement once if PostgreSQL ended it to break a deadlock (40P01): nothing of it was done. */
export async function onceMoreOnDeadlock<T>(statement: () => Promise<T>): Promise<T> {
  try {
    return await statement()
  } catch (error) {
    const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error
    if (cause instanceof Error && 'code' in cause && cause.code === '40P01') return statement()
    throw error
  }
}
