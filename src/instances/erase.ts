import { and, eq, inArray, isNotNull, lte, ne, type SQL, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { instances } from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { terminatedReadableDays } from './row.ts'

/** Rows that one statement erases at most. */
const batchSize = 500

/** Every instance has a name until it is erased. */
export const isNotErased = ne(instances.name, '')

/** The columns that may hold secrets, with their values once the sandbox of a terminated instance is destroyed. */
export const erasedSecrets = { sealedInstructions: null, sealedConfig: null, sealedToken: '' } as const

/** The columns that hold what a caller wrote, with their values after the erasure. */
export const erasedColumns = {
  ...erasedSecrets,
  name: '',
  externalId: null,
  metadata: {},
  model: null,
  unlistedModels: [] as string[],
} as const

/**
 * Empties the name, external id, metadata, configuration and token of the settled instances that `condition` selects: instances that
 * nobody can read any more. The rows stay, so that a sandbox that reappears later is recognized. Returns the number of
 * erased rows. After a crash, or a throw of the signal's reason, the next call erases the rest.
 */
export async function eraseInstances(db: Db, condition: SQL | undefined, signal?: AbortSignal): Promise<number> {
  const { id, terminatedAt, generation, observedGeneration } = instances
  const batch = db
    .select({ id })
    .from(instances)
    .where(and(condition, isNotErased, eq(observedGeneration, generation)))
    .orderBy(terminatedAt, id) // concurrent calls lock in the same order
    .limit(batchSize)
    .for('update')
  for (let erased = 0; ; ) {
    const { rowCount } = await db
      .update(instances)
      .set({ ...erasedColumns, changedBy: changedBy({ type: 'instance.erased' }) })
      .where(inArray(id, batch))
    erased += rowCount ?? 0
    if ((rowCount ?? 0) < batchSize) return erased
    signal?.throwIfAborted()
  }
}

/** Erases terminated instances that can no longer be read. */
export function eraseTerminated(db: Db, signal?: AbortSignal): Promise<number> {
  const readableSince = sql`now() - make_interval(days => ${terminatedReadableDays})`
  return eraseInstances(db, and(isNotNull(instances.terminatedAt), lte(instances.terminatedAt, readableSince)), signal)
}
