import { ne, type SQL, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { erasedColumns, instances } from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { terminatedReadableDays } from './row.ts'

/** Maximum rows per statement. */
const batchSize = 500

/** Every instance has a name until it is erased. */
export const isNotErased = ne(instances.name, '')

/**
 * Empties the name, external id, metadata, configuration and token of terminated, settled instances that can no longer
 * be read, and deletes their budgets, schedules and hooks, and the hosts and sizes that were written after the end of their sandboxes.
 * `selection` selects and sorts them. The rows stay, so that a sandbox that reappears is recognized. Returns the number
 * of erased rows. After a crash or a throw of the signal's reason, the next call erases the rest.
 */
async function eraseInstances(db: Db, selection: SQL, signal?: AbortSignal): Promise<number> {
  const batch = sql`(
    SELECT id FROM instances
    WHERE terminated_at IS NOT NULL AND name <> '' AND observed_generation = generation AND ${selection}
    LIMIT ${batchSize} FOR UPDATE)`
  const erase = db
    .update(instances)
    .set({ ...erasedColumns, changedBy: changedBy({ type: 'instance.erased' }) })
    .where(sql`${instances.id} IN ${batch}`)
    .returning({ id: instances.id })
  const isErased = sql`= ANY (ARRAY(SELECT id FROM erased))`
  for (let erased = 0; ; ) {
    const { rowCount } = await db.execute(sql`
      WITH erased AS (${erase.getSQL()}),
        of_budgets AS (DELETE FROM budgets WHERE owner_id ${isErased}),
        of_egress AS (DELETE FROM egress_hosts WHERE instance_id ${isErased}),
        of_schedules AS (DELETE FROM schedules WHERE instance_id ${isErased}),
        of_hooks AS (DELETE FROM hooks WHERE instance_id ${isErased}),
        of_use AS (DELETE FROM instance_use WHERE instance_id ${isErased})
      SELECT FROM erased`)
    erased += rowCount ?? 0
    if ((rowCount ?? 0) < batchSize) return erased
    signal?.throwIfAborted()
  }
}

// All calls lock the rows of an organization in the same order.

/** Erases terminated instances that can no longer be read, with `eraseInstances`. */
export function eraseTerminated(db: Db, signal?: AbortSignal): Promise<number> {
  const isOver = sql`terminated_at <= now() - make_interval(days => ${terminatedReadableDays})`
  return eraseInstances(db, sql`${isOver} ORDER BY terminated_at, id`, signal)
}

/**
 * Erases the terminated instances of an organization, with `eraseInstances`. Compares and sorts by all columns of the
 * index: otherwise the planner may read all instances for each batch.
 */
export function eraseInstancesOf(db: Db, organizationId: string, signal?: AbortSignal): Promise<number> {
  const bound = (time: 'infinity' | '-infinity') => sql`(${organizationId}, ${time}, ${organizationId})`
  return eraseInstances(
    db,
    sql`(organization_id, terminated_at, id) > ${bound('-infinity')}
      AND (organization_id, terminated_at, id) < ${bound('infinity')}
    ORDER BY organization_id, terminated_at, id`,
    signal,
  )
}
