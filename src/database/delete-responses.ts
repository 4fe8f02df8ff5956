import { type SQL, sql } from 'drizzle-orm'
import type { Db } from './client.ts'

/** A response has up to 2.7 MB. The last one of a batch may exceed the bytes. */
const maxRows = 1000
const maxBytes = 8 * 1024 * 1024

/**
 * Deletes the responses `r` that match a condition, such as `WHERE r.instance_id = …`, in batches of less than a
 * second. After a throw of the signal's reason or a crash, some remain.
 */
export async function deleteResponses(db: Db, condition: SQL, signal?: AbortSignal): Promise<void> {
  for (;;) {
    const { rowCount } = await db.execute(sql`
      DELETE FROM responses WHERE id IN (
        SELECT id FROM (
          SELECT id, sum(bytes) OVER (ORDER BY id) - bytes AS before
          FROM (SELECT r.id, coalesce(octet_length(r.sealed_object), 0) + coalesce(octet_length(r.sealed_input), 0)
            AS bytes FROM responses r ${condition} LIMIT ${maxRows}) AS found
        ) AS sized WHERE before < ${maxBytes})`)
    if ((rowCount ?? 0) === 0) return
    signal?.throwIfAborted()
  }
}

/** Deletes the responses of a session that was reset or deleted. */
export const deleteSessionResponses = (db: Db, instanceId: string, sessionKey: string): Promise<void> =>
  deleteResponses(db, sql`WHERE r.instance_id = ${instanceId} AND r.session_key = ${sessionKey}`)

/**
 * Deletes the responses of the instances `i` that match a condition. Finds the instances once: otherwise each batch
 * would pass over those without responses. After a throw of the signal's reason or a crash, some remain.
 */
export async function deleteResponsesOf(db: Db, condition: SQL, signal?: AbortSignal): Promise<void> {
  const { rows } = await db.execute<{ id: string }>(sql`
    SELECT i.id FROM instances i WHERE ${condition} AND EXISTS (SELECT FROM responses r WHERE r.instance_id = i.id)`)
  for (const { id } of rows) await deleteResponses(db, sql`WHERE r.instance_id = ${id}`, signal)
}

/** Deletes the responses of an organization. After a throw of the signal's reason or a crash, some remain. */
export async function deleteResponsesOfOrganization(
  db: Db,
  organizationId: string,
  signal?: AbortSignal,
): Promise<void> {
  for (let last = { id: organizationId, created_at: '-infinity' }; ; ) {
    // By all columns of the index, and with a limit that forces a lookup for each of the instances.
    const { rows } = await db.execute<{ id: string; created_at: string; has_some: boolean }>(sql`
      SELECT i.id, i.created_at::text, found.instance_id IS NOT NULL AS has_some FROM instances i
      LEFT JOIN LATERAL (SELECT r.instance_id FROM responses r WHERE r.instance_id = i.id LIMIT 1) found ON true
      WHERE (i.organization_id, i.created_at, i.id) > (${organizationId}, ${last.created_at}, ${last.id})
        AND (i.organization_id, i.created_at, i.id) < (${organizationId}, 'infinity', ${organizationId})
      ORDER BY i.organization_id, i.created_at, i.id LIMIT ${maxRows}`)
    for (const { id, has_some } of rows)
      if (has_some) await deleteResponses(db, sql`WHERE r.instance_id = ${id}`, signal)
    const end = rows.at(-1)
    if (!end || rows.length < maxRows) return
    last = end
    signal?.throwIfAborted()
  }
}
