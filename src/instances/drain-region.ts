import { and, eq, inArray, isNull, ne, or, type SQL, sql } from 'drizzle-orm'
import type { PgUpdateSetSource } from 'drizzle-orm/pg-core'
import type { Db } from '#database/client.ts'
import { instances } from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { raiseGeneration } from './intent.ts'
import { isShownIn, type Region, type RegionPlace } from './regions.ts'
import { isFree, isNotTerminated } from './status.ts'

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

/**
 * Moves the stopped instances of a region to another one that has the same storage, and has workers start those there
 * that a drain has stopped. Returns how many have moved.
 */
export async function moveInstances(
  db: Db,
  from: Named,
  { region, sandboxDriver }: Pick<RegionPlace, 'region' | 'sandboxDriver'>,
): Promise<number> {
  const to = { region, sandboxDriver }
  const reason = `The operator moved it from the region ${from.region} to ${region}.`
  const isAtRest = and(
    isShownIn(from),
    eq(instances.desiredState, 'stopped'),
    eq(instances.observedGeneration, instances.generation),
    isFree,
  )
  const started = await changeAll(db, and(isAtRest, isStoppedForDrain), {
    ...to,
    ...raiseGeneration('start'),
    changedBy: changedBy({ type: 'instance.start', reason }),
  })
  const others = await changeAll(
    db,
    and(isAtRest, or(isNull(instances.stoppedFor), ne(instances.stoppedFor, 'drain'))),
    {
      ...to,
      changedBy: changedBy({ type: 'instance.update', reason }),
    },
  )
  return started + others
}
