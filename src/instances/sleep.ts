import { and, isNull, lte, type SQL, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { instances, organizations } from '#database/schema.ts'
import { currentOrigin, runAs } from '#history/actor.ts'
import { changedBy } from '#history/record.ts'
import { raiseGeneration } from './intent.ts'
import type { InstanceQueue } from './queue.ts'
import { isOwnedBy } from './row.ts'
import { isAsleep } from './status.ts'
import { changeInBatches } from './suspension.ts'

interface SleepDeps {
  db: Db
  queue: InstanceQueue
}

/**
 * Starts an instance that sleeps, for a request. Does nothing for any other, such as one that another request has woken.
 */
export async function wakeInstance({ db, queue }: SleepDeps, organizationId: string, id: string): Promise<void> {
  const { actor, requestId } = currentOrigin()
  // An origin of its own, because the event of the request is another one.
  const { rowCount } = await runAs({ actor, ...(requestId !== undefined && { requestId }) }, () =>
    db
      .update(instances)
      .set({
        ...raiseGeneration('start'),
        changedBy: changedBy({ type: 'instance.start', reason: 'woken by a request.' }),
      })
      .where(and(isOwnedBy(organizationId, id), isAsleep)),
  )
  if (rowCount) queue.enqueue()
}

/** Starts the sleeping instances of `where` whose cron soon has something to do. */
export const wakeForCron = (deps: SleepDeps, where: SQL | undefined, signal: AbortSignal): Promise<void> =>
  changeInBatches(
    deps,
    and(where, isAsleep, lte(instances.wakesAt, sql`now()`), isNull(organizations.suspendedAt)),
    {
      ...raiseGeneration('start'),
      changedBy: changedBy({ type: 'instance.start', reason: 'woken for its cron.' }),
    },
    signal,
  )
