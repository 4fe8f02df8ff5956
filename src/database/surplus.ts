import { and, eq, gt, type SQL, sql } from 'drizzle-orm'
import type { Db } from './client.ts'
import { type StoredKind, storedBytes } from './stored-bytes-schema.ts'

/** Rows that one statement deletes at most. */
const batchSize = 1000

interface Surplus {
  kind: StoredKind
  table: SQL
  /** The condition and the order of an organization's rows, the oldest first. */
  oldestOf: (organizationId: string) => SQL
  /** The bytes of this kind that an organization keeps; 0 keeps all. */
  maxBytes: number
}

/**
 * Deletes the oldest rows of each organization that stores more than `maxBytes` of a kind. In batches, and throws the
 * signal's reason between two. Each batch counts again: several processes delete hardly more than one.
 */
export async function deleteSurplus(
  db: Db,
  { kind, table, oldestOf, maxBytes }: Surplus,
  signal?: AbortSignal,
): Promise<void> {
  if (maxBytes === 0) return
  const organizations = await db
    .select({ id: storedBytes.organizationId })
    .from(storedBytes)
    .where(and(eq(storedBytes.kind, kind), gt(storedBytes.bytes, maxBytes)))
  for (const { id } of organizations) {
    const isSurplus = sql`(
      SELECT sum(bytes) FROM (
        SELECT bytes FROM stored_bytes WHERE organization_id = ${id} AND kind = ${kind}
        UNION ALL SELECT bytes FROM stored_byte_changes WHERE organization_id = ${id} AND kind = ${kind}
      ) AS counted) > ${maxBytes}`
    for (;;) {
      const { rowCount } = await db.execute(sql`
        DELETE FROM ${table} WHERE id IN (
          SELECT id FROM ${table} WHERE ${isSurplus} AND ${oldestOf(id)} LIMIT ${batchSize})`)
      signal?.throwIfAborted()
      if ((rowCount ?? 0) < batchSize) break
    }
  }
}
