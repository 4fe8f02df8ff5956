import { and, eq, inArray, ne, type SQL, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { instances } from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { terminatedReadableDays } from './row.ts'

/** Rows that one statement empties at most; the next one follows at once. */
const batch = 500

/** A row that was created has a sealed token until it is erased. */
export const isNotErased = ne(instances.sealedToken, '')

/**
 * Empties the settled instances that `which` means, which nobody may be able to read any more, of what may be a caller's own:
 * configuration, token, name and metadata. The rows stay, so that a sandbox that comes to light later is known for what it
 * is. Returns how many they were; a crash half-way leaves the rest to the next call.
 */
export async function eraseInstances(db: Db, which: SQL, signal?: AbortSignal): Promise<number> {
  const { id, terminatedAt, generation, observedGeneration } = instances
  const next = db
    .select({ id })
    .from(instances)
    .where(and(which, isNotErased, eq(observedGeneration, generation)))
    .orderBy(terminatedAt, id) // two workers at it lock in the same order
    .limit(batch)
    .for('update')
  for (let erased = 0; ; ) {
    const { rowCount } = await db
      .update(instances)
      .set({
        name: '',
        metadata: {},
        sealedConfig: null,
        sealedToken: '',
        changedBy: changedBy({ type: 'instance.erased' }),
      })
      .where(inArray(id, next))
    erased += rowCount ?? 0
    if ((rowCount ?? 0) < batch) return erased
    signal?.throwIfAborted()
  }
}

/** Erases terminated instances whose time to be read is over. */
export const eraseTerminated = (db: Db, signal?: AbortSignal): Promise<number> =>
  eraseInstances(
    db,
    sql`${instances.terminatedAt} IS NOT NULL AND ${instances.terminatedAt} <= now() - make_interval(days => ${terminatedReadableDays})`,
    signal,
  )
