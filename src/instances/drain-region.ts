import { and, eq, inArray, isNotNull, or, type SQL, sql } from 'drizzle-orm'
import type { PgUpdateSetSource } from 'drizzle-orm/pg-core'
import type { Db } from '#database/client.ts'
import { instances } from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { raiseGeneration } from './intent.ts'
import { isShownIn, type Region } from './regions.ts'
import { isAsleep, isNotTerminated } from './status.ts'

/** Maximum rows per statement: each runs a trigger and writes an event. */
const batchSize = 250

type Named = Pick<Region, 'region' | 'hasUnnamed'>

/** Changes the matching rows in batches. Returns their number. */
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

/**
 * Makes workers stop the instances of a region that run or start, and end the gateways of those that sleep. Returns the
 * number of the former.
 */
export async function stopForDrain(db: Db, region: Named): Promise<number> {
  const reason = `The operator drains the region ${region.region}.`
  await changeAll(db, and(isShownIn(region), isAsleep, isNotNull(instances.relayTokenHash)), {
    ...raiseGeneration('drift'),
    relayTokenHash: null,
    changedBy: changedBy({ type: 'instance.due', reason }),
  })
  return changeAll(db, and(isShownIn(region), eq(instances.desiredState, 'running')), {
    ...raiseGeneration('stopForDrain'),
    changedBy: changedBy({ type: 'instance.stop', reason }),
  })
}

/** The number of instances of a region that run or are not stopped yet. */
export const countUndrained = (db: Db, region: Named): Promise<number> =>
  db.$count(
    instances,
    and(
      isShownIn(region),
      isNotTerminated,
      or(eq(instances.desiredState, 'running'), sql`${instances.observedGeneration} < ${instances.generation}`),
    ),
  )

/** The number of instances that a drain of the region has stopped. */
export const countStoppedForDrain = (db: Db, region: Named): Promise<number> =>
  db.$count(instances, and(isShownIn(region), isStoppedForDrain))

const isStoppedForDrain = and(eq(instances.desiredState, 'stopped'), eq(instances.stoppedFor, 'drain'))

/** Makes workers restart the instances that a drain of the region has stopped. Returns their number. */
export const startAfterDrain = (db: Db, region: Named): Promise<number> =>
  changeAll(db, and(isShownIn(region), isStoppedForDrain), {
    ...raiseGeneration('start'),
    changedBy: changedBy({ type: 'instance.start', reason: `The region ${region.region} takes instances again.` }),
  })
