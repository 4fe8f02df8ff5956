import type pg from 'pg'
import { explainConnection } from '#database/connection-fault.ts'
import { createQueue, type ReconcileQueue } from '#lifecycle/queue/queue.ts'
import type { QueueBackend } from '#lifecycle/queue/queue-backend.ts'
import type { Config } from '#settings/config.ts'
import type { Startup } from './startup.ts'

/** Redis when REDIS_URL is set, otherwise the database. `name` appears in the database's list of connections. */
export const queueBackend = (config: Config, connection: pg.PoolConfig, name: string): QueueBackend =>
  config.REDIS_URL
    ? { kind: 'redis', url: config.REDIS_URL }
    : { kind: 'postgres', connection: { ...connection, application_name: name } }

/** Opens the queue, without waiting for Redis. Throws StartupError when its schema in the database is outdated. */
export async function openQueue(
  { role, config, log, drain }: Startup,
  connection: pg.PoolConfig,
): Promise<ReconcileQueue> {
  const queue = createQueue(queueBackend(config, connection, `chowder-${role}-queue`), log)
  drain.add('queue', () => queue.close())
  await queue.check().catch((error: unknown) => {
    throw config.DATABASE_URL ? explainConnection(error, config.DATABASE_URL) : error
  })
  return queue
}
