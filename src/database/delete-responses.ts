import { type SQL, sql } from 'drizzle-orm'
import type { Db } from './client.ts'

/** A response has up to 2.7 MB. The last one of a batch may exceed the bytes. */
const maxRows = 1000
const maxBytes = 32 * 1024 * 1024

/**
 * Deletes the responses `r` that a condition selects, such as `WHERE r.instance_id = …`, in batches that take less
 * than a second. A throw of the signal's reason, or a crash, leaves the rest.
 */
export async function deleteResponses(db: Db, condition: SQL, signal?: AbortSignal): Promise<void> {
  for (;;) {
    const { rowCount } = await db.execute(sql`
      DELETE FROM responses WHERE id IN (
        SELECT id FROM (
          SELECT id, sum(bytes) OVER (ORDER BY id) - bytes AS before
          FROM (SELECT r.id, stored_bytes(r.*) AS bytes FROM responses r ${condition} LIMIT ${maxRows}) AS found
        ) AS sized WHERE before < ${maxBytes})`)
    if ((rowCount ?? 0) === 0) return
    signal?.throwIfAborted()
  }
}
