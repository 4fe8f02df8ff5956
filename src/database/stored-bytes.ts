import { eq, sql } from 'drizzle-orm'
import type { Db } from './client.ts'
import { type StoredKind, storedBytes, storedKinds } from './stored-bytes-schema.ts'

export type StoredBytes = Record<StoredKind, number>

/** Changes that one statement adds up at most. */
const batchSize = 20_000

/** The bytes that an organization stores, as they were added up last: every second. Reads four rows at most. */
export async function readStoredBytes(db: Db, organizationId: string): Promise<StoredBytes> {
  const rows = await db.select().from(storedBytes).where(eq(storedBytes.organizationId, organizationId))
  const bytesOf = (kind: StoredKind) => rows.find((row) => row.kind === kind)?.bytes ?? 0
  return Object.fromEntries(storedKinds.map((kind) => [kind, bytesOf(kind)])) as StoredBytes
}

/**
 * Adds the changes since the last call to the stored bytes, in batches. Does nothing while another process does it. A
 * crash loses and repeats no change. Throws the reason of the signal between two batches.
 */
export async function addUpStoredBytes(db: Db, signal?: AbortSignal): Promise<void> {
  while ((await addUpBatch(db)) === batchSize) signal?.throwIfAborted()
}

const addUpBatch = (db: Db): Promise<number> =>
  db.transaction(async (tx) => {
    // Two processes would wait for each other's rows, and could deadlock. A statement of its own: the next one then sees
    // all that the process before has committed.
    const lock = await tx.execute(sql`SELECT pg_try_advisory_xact_lock(hashtextextended('stored_bytes', 0)) AS mine`)
    if (!lock.rows[0]?.mine) return 0
    const { rows } = await tx.execute<{ changes: number }>(sql`
      WITH changes AS (
        DELETE FROM stored_byte_changes
        WHERE ctid = ANY (ARRAY(SELECT ctid FROM stored_byte_changes LIMIT ${batchSize}))
        RETURNING organization_id, kind, bytes
      ), added AS (
        INSERT INTO stored_bytes (organization_id, kind, bytes)
        SELECT organization_id, kind, sum(bytes) FROM changes GROUP BY organization_id, kind
        ON CONFLICT (organization_id, kind) DO UPDATE SET bytes = stored_bytes.bytes + excluded.bytes
      )
      SELECT count(*)::int AS changes FROM changes`)
    return rows[0]?.changes ?? 0
  })
