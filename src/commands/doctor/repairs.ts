import { and, eq, type SQL, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type Instance, instances } from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { raiseGeneration } from '#instances/intent.ts'
import { isDue, isFree } from '#instances/status.ts'

type Seen = Pick<Instance, 'id' | 'generation'>

/** The row as it was seen, and nobody at work on it. */
const unchangedAndFree = ({ id, generation }: Seen) =>
  and(eq(instances.id, id), eq(instances.generation, generation), isFree)

/**
 * Raises the generation of a row that is not as it should be: a worker makes it true again, as after any intent. False
 * when the row has changed since it was seen, or is in work.
 */
export async function makeDue(
  db: Db,
  seen: Seen,
  reason: string,
  also: { readyAt?: null; terminatedAt?: SQL } = {},
): Promise<boolean> {
  const { rowCount } = await db
    .update(instances)
    .set({
      ...also,
      ...raiseGeneration('repair'),
      changedBy: changedBy({ type: 'instance.due', reason }),
    })
    .where(unchangedAndFree(seen))
  return rowCount === 1
}

/**
 * Has a due row tried again now, its failures still counted. The token is raised, so that the next bell is no twin of one
 * that was lost in the queue. False when the row has changed since it was seen, or is in work.
 */
export async function tryNow(db: Db, seen: Seen, reason: string): Promise<boolean> {
  const { rowCount } = await db
    .update(instances)
    .set({
      leaseToken: sql`${instances.leaseToken} + 1`,
      nextAttemptAt: sql`least(${instances.nextAttemptAt}, now())`,
      changedBy: changedBy({ type: 'instance.due', reason }),
    })
    .where(and(unchangedAndFree(seen), isDue))
  return rowCount === 1
}

/** Ends a lease that no holder can have: its token is fenced off. False when somebody has written it since it was seen. */
export async function endLease(
  db: Db,
  seen: { id: string; leaseToken: number; leaseUntil: string },
  reason: string,
): Promise<boolean> {
  const { rowCount } = await db
    .update(instances)
    .set({
      leaseToken: sql`${instances.leaseToken} + 1`,
      leaseUntil: sql`now()`,
      changedBy: changedBy({ type: 'instance.due', reason }),
    })
    .where(
      and(
        eq(instances.id, seen.id),
        eq(instances.leaseToken, seen.leaseToken),
        sql`${instances.leaseUntil} = ${seen.leaseUntil}::timestamptz`,
      ),
    )
  return rowCount === 1
}
