import { drizzle, type NodePgDatabase } from 'drizzle-orm/node-postgres'
import type pg from 'pg'

export type Db = NodePgDatabase & { $client: pg.Pool }

export type Transaction = Parameters<Parameters<Db['transaction']>[0]>[0]

/** What runs statements: the pool, or one connection of it inside a transaction. */
export type Statements = Pick<Db, 'select' | 'insert' | 'update' | 'delete' | 'execute'> & {
  $client: Pick<pg.Pool, 'query'>
}

/**
 * Ends a connection that has left a statement unanswered for longer than the pool waits: the rollback would wait as long
 * again, and so would whoever gets the connection next.
 */
function endWhenSilent(client: pg.PoolClient): void {
  const query: (...asked: unknown[]) => unknown = client.query.bind(client)
  const end: () => Promise<void> = (client as unknown as pg.Client).end.bind(client)
  const watched = (...asked: unknown[]) => {
    const answer = query(...asked)
    if (answer instanceof Promise) {
      answer.catch((error: Error) => {
        if (error.message === 'Query read timeout') end().catch(() => {})
      })
    }
    return answer
  }
  client.query = watched as typeof client.query
}

/**
 * The query builder over a pool that has no connections yet; opens nothing itself. A connection that dies in the middle of
 * a transaction fails what is asked of it, and not the process.
 */
export function createDb(pool: pg.Pool): Db {
  pool.on('connect', (client) => {
    client.on('error', () => {})
    endWhenSilent(client)
  })
  const db = drizzle({ client: pool, casing: 'snake_case' })
  // Its own would never give a connection back on which already the BEGIN fails.
  db.transaction = (act, config) => onConnection(pool, (client) => on(client).transaction(act, config))
  return db
}

const on = (client: pg.PoolClient) => drizzle({ client, casing: 'snake_case' })

async function onConnection<T>(pool: pg.Pool, act: (client: pg.PoolClient) => Promise<T>): Promise<T> {
  const client = await pool.connect()
  try {
    return await act(client)
  } finally {
    client.release()
  }
}

/** Runs all of it in one transaction; throws what `act` throws, and then nothing of it was done. */
export const inTransaction = <T>(db: Db, act: (statements: Statements) => Promise<T>): Promise<T> =>
  onConnection(db.$client, (client) => on(client).transaction((tx) => act(Object.assign(tx, { $client: client }))))

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
