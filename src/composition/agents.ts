import { and, eq, inArray } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { instances } from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { raiseGeneration } from '#instances/intent.ts'
import { isRunningAndFree } from '#instances/status.ts'
import type { AnyDriver } from './sandboxes.ts'
import type { Startup } from './startup.ts'

const graceMs = 10_000
const markMs = 1000
/** Instances that one statement marks: each has its trigger and its event. */
const maxMarked = 1000

/**
 * Has SIGINT stop the agents with Chowder, if they are processes of this host. Their rows become due first, so that the
 * next start brings them back.
 */
export function stopAgentsOnInterrupt({ log, drain }: Startup, db: Db, { name, stopAll }: AnyDriver): void {
  drain.add('agents', async ({ interrupted }) => {
    if (!interrupted || !stopAll) return log.info('the agents go on running; the next start adopts them')
    log.info('stopping the agents')
    await markForRestart(db, name, AbortSignal.timeout(markMs)).catch((error: unknown) => {
      log.warn({ err: error }, 'not all agents could be marked for a restart; the next start finds them stopped')
    })
    await stopAll({ graceMs }, AbortSignal.timeout(graceMs * 2))
  })
}

/**
 * Makes the instances of a driver due that run, in batches. Throws the reason of the signal between two batches. What
 * that, or a crash, leaves is compared with its sandbox after the next start.
 */
export async function markForRestart(db: Db, driver: string, signal: AbortSignal): Promise<void> {
  const runsHere = and(isRunningAndFree, eq(instances.sandboxDriver, driver))
  const markSome = () =>
    db
      .update(instances)
      .set({
        ...raiseGeneration('stopWithChowder'),
        changedBy: changedBy({ type: 'instance.due', reason: 'Chowder was stopped with its agents.' }),
      })
      .where(
        and(
          inArray(instances.id, db.select({ id: instances.id }).from(instances).where(runsHere).limit(maxMarked)),
          runsHere,
        ),
      )
  while ((await markSome()).rowCount === maxMarked) signal.throwIfAborted()
}
