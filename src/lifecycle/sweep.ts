import { and, not, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { instances } from '#database/schema.ts'
import { type InstanceQueue, instanceRefColumns } from '#instances/queue.ts'
import { isInAny, type Region } from '#instances/regions.ts'
import { isDueNow } from '#instances/status.ts'

/** The most rows that one sweep enqueues; the next sweep takes the rest. */
const batch = 500

/**
 * Enqueues due rows that no worker holds: rows whose job was lost, and retries whose time has come. Organizations take
 * turns, so that one with thousands of due rows delays no other. Returns how many are due in these regions, `batch` at
 * most.
 */
export async function sweep(db: Db, regions: readonly Region[], queue: InstanceQueue): Promise<number> {
  const { id, nextAttemptAt, organizationId } = instances
  const turn = sql<number>`row_number() OVER (PARTITION BY ${organizationId} ORDER BY ${nextAttemptAt}, ${id})`
  const due = await db
    .select(instanceRefColumns)
    .from(instances)
    .where(and(isInAny(regions), isDueNow))
    .orderBy(turn, nextAttemptAt)
    .limit(batch)
  for (const row of due) queue.enqueue(row)
  return due.length
}

/** Counts the due rows that a worker of these regions never takes, by their region and their driver. */
export const dueElsewhere = (db: Db, regions: readonly Region[]) =>
  db
    .select({
      region: instances.region,
      sandboxDriver: instances.sandboxDriver,
      rows: sql<number>`count(*)::int`,
    })
    .from(instances)
    .where(and(not(isInAny(regions)), isDueNow))
    .groupBy(instances.region, instances.sandboxDriver)
