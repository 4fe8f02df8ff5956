import { inArray, lt, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { apiKeys } from '#database/schema.ts'

/** How long a revoked key is listed. */
const revokedKeptDays = 365
/** Maximum rows per statement. */
const batchSize = 1000

/** Deletes the keys that were revoked a year ago, in batches. Throws the signal's reason between two batches. */
export async function deleteRevokedKeys(db: Db, signal?: AbortSignal): Promise<void> {
  const old = db
    .select({ id: apiKeys.id })
    .from(apiKeys)
    .where(lt(apiKeys.revokedAt, sql`now() - make_interval(days => ${revokedKeptDays})`))
    .limit(batchSize)
  for (;;) {
    const { rowCount } = await db.delete(apiKeys).where(inArray(apiKeys.id, old))
    if ((rowCount ?? 0) < batchSize) return
    signal?.throwIfAborted()
  }
}
