import { and, eq, type SQL, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type Instance, instances } from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { raiseGeneration } from '#instances/intent.ts'
import { newLeaseToken } from '#instances/lease.ts'
import { isDue, isFree } from '#instances/status.ts'

type FoundRow = Pick<Instance, 'id' | 'generation'>

const isUnchangedAndFree = ({ id, generation }: FoundRow) =>
  and(eq(instances.id, id), eq(instances.generation, generation), isFree)

/**
 * Raises the generation of a row, so that a worker corrects it as after any intent. Returns false when the row has
 * changed since it was found, or a worker holds it.
 */
export async function makeDue(
  db: Db,
  found: FoundRow,
  reason: string,
  columns: { readyAt?: null; terminatedAt?: SQL } = {},
): Promise<boolean> {
  const { rowCount } = await db
    .update(instances)
    .set({
      ...columns,
      ...raiseGeneration('repair'),
      changedBy: changedBy({ type: 'instance.due', reason }),
    })
    .where(isUnchangedAndFree(found))
  return rowCount === 1
}

/**
 * Has a due row tried again now, without forgetting its failures. It gets another token because the id of a job contains
 * it: a job with the id of one that the queue has lost would be ignored. Returns false when the row has changed since
 * it was found, or a worker holds it.
 */
export async function tryNow(db: Db, found: FoundRow, reason: string): Promise<boolean> {
  const { rowCount } = await db
    .update(instances)
    .set({
      leaseToken: newLeaseToken,
      nextAttemptAt: sql`least(${instances.nextAttemptAt}, now())`,
      changedBy: changedBy({ type: 'instance.due', reason }),
    })
    .where(and(isUnchangedAndFree(found), isDue))
  return rowCount === 1
}

/**
 * Ends a lease that no worker can hold, and gives the row another token, so that no holder of the old one can write.
 * Returns false when the lease has changed since it was found.
 */
export async function endLease(
  db: Db,
  found: { id: string; leaseToken: number; leaseUntil: string },
  reason: string,
): Promise<boolean> {
  const { rowCount } = await db
    .update(instances)
    .set({
      leaseToken: newLeaseToken,
      leaseUntil: sql`now()`,
      changedBy: changedBy({ type: 'instance.due', reason }),
    })
    .where(
      and(
        eq(instances.id, found.id),
        eq(instances.leaseToken, found.leaseToken),
        sql`${instances.leaseUntil} = ${found.leaseUntil}::timestamptz`,
      ),
    )
  return rowCount === 1
}
