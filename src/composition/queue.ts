import type pg from 'pg'
import { createQueue, type ReconcileQueue } from '#lifecycle/queue.ts'
import type { QueueBackend } from '#lifecycle/queue-backend.ts'
import type { Config } from '#platform/config.ts'
import { StartupError } from '#platform/startup-error.ts'
import type { Startup } from './startup.ts'

/** Redis when REDIS_URL is set, else the database; `name` is shown in the database's list of connections. */
export const queueBackend = (config: Config, connection: pg.PoolConfig, name: string): QueueBackend =>
  config.REDIS_URL
    ? { kind: 'redis', url: config.REDIS_URL }
    : { kind: 'postgres', connection: { ...connection, application_name: name } }

/** Opens the queue, without waiting for Redis. Throws StartupError when its schema in the database is behind. */
export async function openQueue(
  { role, config, log, drain }: Startup,
  connection: pg.PoolConfig,
): Promise<ReconcileQueue> {
  const queue = createQueue(queueBackend(config, connection, `chowder-${role}-queue`), log)
  drain.add('queue', () => queue.close())
  await queue.check().catch((cause: unknown) => {
    throw new StartupError('The queue has no schema in the database, or an old one. Run npm run migrate first.', {
      cause,
    })
  })
  return queue
}
