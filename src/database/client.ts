import { drizzle, type NodePgDatabase } from 'drizzle-orm/node-postgres'
import type pg from 'pg'

/** Runs SQL on any connection of the pool or, inside a transaction, on the transaction's connection. */
export type Db = Omit<NodePgDatabase, 'transaction'> & {
  $client: Pick<pg.Pool, 'query'>
  /** Runs `act` in one transaction. When `act` throws, the transaction is rolled back and the error is rethrown. */
  transaction<T>(act: (tx: Db) => Promise<T>): Promise<T>
}

/**
 * Closes a connection after a statement on it has timed out. Otherwise the rollback would time out too, and then the
 * next user of the connection.
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
 * Creates a Db on a pool without connecting. When a connection breaks during a transaction, the statements of that
 * transaction fail and the process continues.
 */
export function createDb(pool: pg.Pool): Db {
  pool.on('connect', (client) => {
    client.on('error', () => {})
    endWhenSilent(client)
  })
  return Object.assign(drizzle({ client: pool, casing: 'snake_case' }), {
    // Drizzle's transaction does not release the connection when BEGIN fails.
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

/** Adds the connection to Drizzle's transactions, nested ones included, which do not expose it. */
function withClient(database: NodePgDatabase, client: pg.PoolClient): Db {
  const begin = database.transaction.bind(database)
  return Object.assign(database, {
    $client: client,
    transaction: <T>(act: (tx: Db) => Promise<T>) => begin((tx) => act(withClient(tx, client))),
  })
}

/** Repeats a statement or a transaction once when PostgreSQL has rolled it back to resolve a deadlock (40P01). */
export async function retryOnDeadlock<T>(statement: () => Promise<T>): Promise<T> {
  try {
    return await statement()
  } catch (error) {
    const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error
    if (cause instanceof Error && 'code' in cause && cause.code === '40P01') return statement()
    throw error
  }
}
