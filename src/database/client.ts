import { drizzle, type NodePgDatabase } from 'drizzle-orm/node-postgres'
import type pg from 'pg'

/** Runs SQL: on any connection of the pool, or, inside a transaction, on the one connection that it holds. */
export type Db = Omit<NodePgDatabase, 'transaction'> & {
  $client: Pick<pg.Pool, 'query'>
  /** Runs all of `act` in one transaction. When `act` throws, none of it is done and the error is thrown on. */
  transaction<T>(act: (tx: Db) => Promise<T>): Promise<T>
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
 * Runs SQL over a pool, and opens no connection itself. A connection that dies in the middle of a transaction fails the
 * statements of that transaction, and not the process.
 */
export function createDb(pool: pg.Pool): Db {
  pool.on('connect', (client) => {
    client.on('error', () => {})
    endWhenSilent(client)
  })
  return Object.assign(drizzle({ client: pool, casing: 'snake_case' }), {
    // Drizzle's own would never give a connection back on which already the BEGIN fails.
    async transaction<T>(act: (tx: Db) => Promise<T>): Promise<T> {
      const client = await pool.connect()
      try {
        return await withClient(drizzle({ client, casing: 'snake_case' }), client).transaction(act)
      } finally {
        client.release()
      }
    },
  })
}

/** Drizzle's transactions do not tell their connection: this adds it, also to the transactions inside. */
function withClient(database: NodePgDatabase, client: pg.PoolClient): Db {
  const begin = database.transaction.bind(database)
  return Object.assign(database, {
    $client: client,
    transaction: <T>(act: (tx: Db) => Promise<T>) => begin((tx) => act(withClient(tx, client))),
  })
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
