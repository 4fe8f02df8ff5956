import { drizzle, type NodePgDatabase } from 'drizzle-orm/node-postgres'
import type pg from 'pg'

/** Runs SQL on any connection of the pool or, inside a transaction, on the transaction's connection. */
export type Db = Omit<NodePgDatabase, 'transaction'> & {
  $client: Pick<pg.Pool, 'query'>
  /** Runs `act` in one transaction. When `act` throws, the transaction is rolled back and the error is rethrown. */
  transaction<T>(act: (tx: Db) => Promise<T>): Promise<T>
}

/** The lifetime of a connection in any pool: behind a proxy it may lead to a former primary. */
export const connectionLifetimeSeconds = 600

/**
 * Codes of PostgreSQL after which a connection is unusable: its server is read-only, as a former primary is after a
 * failover behind a proxy, or has ended the connection (25006, 57P01 to 57P03).
 */
const endingCodes = new Set(['25006', '57P01', '57P02', '57P03'])

/** Connections that their pool must not reuse. */
const useless = new WeakSet<pg.PoolClient>()

const end = (client: pg.PoolClient): void => void (client as unknown as pg.Client).end().catch(() => {})

/**
 * Closes a connection after a statement on it has timed out: otherwise the rollback would time out too, and then the
 * next user of the connection. Marks it when the state of its server refused a statement: otherwise a busy pool would
 * keep its connections to a former primary.
 */
function watchConnection(client: pg.PoolClient): void {
  const query: (...asked: unknown[]) => unknown = client.query.bind(client)
  const watched = (...asked: unknown[]) => {
    const answer = query(...asked)
    if (answer instanceof Promise) {
      answer.catch((error: Error) => {
        if (error.message === 'Query read timeout') end(client)
        if ('code' in error && endingCodes.has(String(error.code))) useless.add(client)
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
    watchConnection(client)
  })
  // A pool removes a connection that ends before it is idle.
  pool.on('release', (_error, client) => {
    if (useless.has(client)) end(client)
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
