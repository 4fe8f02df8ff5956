import { and, eq } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { instances } from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { raiseGeneration } from '#instances/intent.ts'
import { isRunningAndFree } from '#instances/status.ts'
import type { AnyDriver } from './sandboxes.ts'
import type { Startup } from './startup.ts'

const graceMs = 10_000

/**
 * Has SIGINT stop the agents with Chowder, if they are processes of this host. Their rows become due first, so that the
 * next start brings them back.
 */
export function stopAgentsOnInterrupt({ log, drain }: Startup, db: Db, { name, stopAll }: AnyDriver): void {
  drain.add('agents', async ({ interrupted }) => {
    if (!interrupted || !stopAll) return log.info('the agents go on running; the next start adopts them')
    log.info('stopping the agents')
    await markForRestart(db, name).catch((error: unknown) => {
      log.warn({ err: error }, 'the agents could not be marked for a restart; the next start finds them stopped')
    })
    await stopAll({ graceMs }, AbortSignal.timeout(graceMs * 2))
  })
}

const markForRestart = (db: Db, driver: string) =>
  db
    .update(instances)
    .set({
      ...raiseGeneration('stopWithChowder'),
      changedBy: changedBy({ type: 'instance.due', reason: 'Chowder was stopped with its agents.' }),
    })
    .where(and(isRunningAndFree, eq(instances.sandboxDriver, driver)))
