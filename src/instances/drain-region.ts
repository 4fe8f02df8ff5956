import { and, eq, inArray, or, type SQL, sql } from 'drizzle-orm'
import type { PgUpdateSetSource } from 'drizzle-orm/pg-core'
import type { Db } from '#database/client.ts'
import { instances } from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { raiseGeneration } from './intent.ts'
import { isShownIn, type Region } from './regions.ts'
import { isNotTerminated } from './status.ts'

/** Rows that one statement changes at most: each has its trigger and its event. */
const batchSize = 250

type Named = Pick<Region, 'region' | 'hasUnnamed'>

/** Changes the rows for which the condition holds, in batches. Returns how many. */
async function changeAll(
  db: Db,
  condition: SQL | undefined,
  set: PgUpdateSetSource<typeof instances>,
): Promise<number> {
  for (let changed = 0; ; ) {
    const batch = db
      .select({ id: instances.id })
      .from(instances)
      .where(condition)
      .orderBy(instances.id)
      .limit(batchSize)
      .for('update')
    const { rowCount } = await db.update(instances).set(set).where(inArray(instances.id, batch))
    changed += rowCount ?? 0
    if ((rowCount ?? 0) < batchSize) return changed
  }
}

/** Has workers stop the instances of a region that run or start. Returns how many. */
export const stopForDrain = (db: Db, region: Named): Promise<number> =>
  changeAll(db, and(isShownIn(region), eq(instances.desiredState, 'running')), {
    ...raiseGeneration('stopForDrain'),
    changedBy: changedBy({ type: 'instance.stop', reason: `The operator drains the region ${region.region}.` }),
  })

/** How many instances of a region run, or have not been stopped yet. */
export const countUndrained = (db: Db, region: Named): Promise<number> =>
  db.$count(
    instances,
    and(
      isShownIn(region),
      isNotTerminated,
      or(eq(instances.desiredState, 'running'), sql`${instances.observedGeneration} < ${instances.generation}`),
    ),
  )

/** How many instances a drain of the region has stopped. */
export const countStoppedForDrain = (db: Db, region: Named): Promise<number> =>
  db.$count(instances, and(isShownIn(region), isStoppedForDrain))

const isStoppedForDrain = and(eq(instances.desiredState, 'stopped'), eq(instances.stoppedFor, 'drain'))

/** Has workers start the instances again that a drain of the region has stopped. Returns how many. */
export const startAfterDrain = (db: Db, region: Named): Promise<number> =>
  changeAll(db, and(isShownIn(region), isStoppedForDrain), {
    ...raiseGeneration('start'),
    changedBy: changedBy({ type: 'instance.start', reason: `The region ${region.region} takes instances again.` }),
  })
