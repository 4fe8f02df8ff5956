import { and, inArray, type SQL } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { instances } from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { raiseGeneration } from '#instances/intent.ts'
import { isInAny } from '#instances/regions.ts'
import { isRunningAndFree } from '#instances/status.ts'
import type { OpenRegions } from './regions.ts'
import type { Startup } from './startup.ts'

const graceMs = 10_000
const markMs = 1000
/** Maximum instances per statement: each runs a trigger and writes an event. */
const maxMarked = 1000

/**
 * On SIGINT, stops the agents with Chowder if they are processes of this host. Makes their rows due first, so that the
 * next start restarts them.
 */
export function stopAgentsOnInterrupt({ log, drain }: Startup, db: Db, regions: OpenRegions): void {
  drain.add('agents', async ({ interrupted }) => {
    const stoppable = regions.served().filter(({ sandboxes }) => sandboxes.stopAll)
    if (!interrupted || stoppable.length === 0) {
      return log.info('the agents go on running; the next start adopts them')
    }
    log.info('stopping the agents')
    await markForRestart(db, isInAny(stoppable), AbortSignal.timeout(markMs)).catch((error: unknown) => {
      log.warn({ err: error }, 'not all agents could be marked for a restart; the next start finds them stopped')
    })
    const late = AbortSignal.timeout(graceMs * 2)
    await Promise.all(stoppable.map(({ sandboxes }) => sandboxes.stopAll?.({ graceMs }, late)))
  })
}

/**
 * Makes running instances due, in batches. Throws the reason of the signal between two batches. After the next start
 * the remaining ones are compared with their sandboxes.
 */
export async function markForRestart(db: Db, isHere: SQL | undefined, signal: AbortSignal): Promise<void> {
  const runsHere = and(isRunningAndFree, isHere)
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
