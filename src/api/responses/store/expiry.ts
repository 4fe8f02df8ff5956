import { and, eq, type SQL, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { responses } from '#database/response-schema.ts'
import { isLost } from './lost-turns.ts'

/** How long a response can be read, and how many of each instance. */
const maxAgeDays = 30
const maxPerInstance = 1000

const batchSize = 500

/** Deletes the responses of a session that was reset or deleted. */
export const deleteSessionResponses = (db: Db, instanceId: string, sessionKey: string) =>
  db.delete(responses).where(and(eq(responses.instanceId, instanceId), eq(responses.sessionKey, sessionKey)))

/**
 * The smallest UUID of version 7 that was made this many ms ago or later: the index of ids finds rows by their time.
 */
const firstUuidSince = (agoMs: number): string => {
  const hex = (Date.now() - agoMs).toString(16).padStart(12, '0')
  return `${hex.slice(0, 8)}-${hex.slice(8)}-7000-8000-000000000000`
}

const dayMs = 24 * 60 * 60_000
const hourMs = 60 * 60_000

/** Deletes the responses `r` that a condition selects, in batches that lock only a few rows. */
async function deleteWhere(db: Db, condition: SQL, signal?: AbortSignal): Promise<void> {
  for (;;) {
    const { rowCount } = await db.execute(
      sql`DELETE FROM responses WHERE id IN (SELECT r.id FROM responses r ${condition} LIMIT ${batchSize})`,
    )
    if ((rowCount ?? 0) < batchSize) return
    signal?.throwIfAborted()
  }
}

/**
 * Deletes responses that are too old, more than an instance may have, or of terminated instances. Marks responses whose
 * process was lost as failed. A crash half-way leaves the rest to the next run.
 */
export async function deleteExpiredResponses(db: Db, signal?: AbortSignal): Promise<void> {
  await deleteWhere(db, sql`WHERE r.id < ${firstUuidSince(maxAgeDays * dayMs)}`, signal)
  await deleteWhere(
    db,
    sql`JOIN instances i ON i.id = r.instance_id WHERE i.terminated_at > now() - interval '1 hour'`,
    signal,
  )
  await deleteWhere(
    db,
    sql`JOIN (
      SELECT active.instance_id, oldest.created_at
      FROM (SELECT DISTINCT instance_id FROM responses WHERE id > ${firstUuidSince(hourMs)}) active
      CROSS JOIN LATERAL (SELECT created_at FROM responses k WHERE k.instance_id = active.instance_id
        ORDER BY created_at DESC, id DESC OFFSET ${maxPerInstance} LIMIT 1) oldest
    ) surplus ON surplus.instance_id = r.instance_id AND r.created_at <= surplus.created_at`,
    signal,
  )
  await db
    .update(responses)
    .set({ status: 'failed' })
    .where(and(sql`${responses.id} > ${firstUuidSince(dayMs)}`, isLost))
}
