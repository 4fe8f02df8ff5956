import { and, eq, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { responses } from '#database/schema.ts'
import { isLost } from './lost-turns.ts'

/** How long a response can be read, and how many of an instance. */
const keptDays = 30
const keptOfInstance = 1000

const clearBatch = 500

/** Forgets what was answered in a session that is emptied or gone. */
export const deleteSessionResponses = (db: Db, instanceId: string, sessionKey: string) =>
  db.delete(responses).where(and(eq(responses.instanceId, instanceId), eq(responses.sessionKey, sessionKey)))

/** The least UUID of version 7 that was made after this many milliseconds ago: rows are found by their time through it. */
const uuidFrom = (agoMs: number): string => {
  const hex = (Date.now() - agoMs).toString(16).padStart(12, '0')
  return `${hex.slice(0, 8)}-${hex.slice(8)}-7000-8000-000000000000`
}

const dayMs = 24 * 60 * 60_000
const hourMs = 60 * 60_000

/**
 * Clears what is not to be kept any longer: what is too old, what an instance has too many of, what is left of terminated
 * instances; and tells of turns whose process was lost that they failed.
 */
export async function deleteExpiredResponses(db: Db): Promise<void> {
  const clear = async (condition: ReturnType<typeof sql>) => {
    for (;;) {
      const { rowCount } = await db.execute(
        sql`DELETE FROM responses WHERE id IN (SELECT r.id FROM responses r ${condition} LIMIT ${clearBatch})`,
      )
      if ((rowCount ?? 0) < clearBatch) return
    }
  }
  await clear(sql`WHERE r.id < ${uuidFrom(keptDays * dayMs)}`)
  await clear(sql`JOIN instances i ON i.id = r.instance_id WHERE i.terminated_at > now() - interval '1 hour'`)
  await clear(sql`JOIN (
      SELECT busy.instance_id, oldest.created_at FROM (SELECT DISTINCT instance_id FROM responses WHERE id > ${uuidFrom(hourMs)}) busy
      CROSS JOIN LATERAL (SELECT created_at FROM responses k WHERE k.instance_id = busy.instance_id
        ORDER BY created_at DESC, id DESC OFFSET ${keptOfInstance} LIMIT 1) oldest
    ) surplus ON surplus.instance_id = r.instance_id AND r.created_at <= surplus.created_at`)
  await db
    .update(responses)
    .set({ status: 'failed' })
    .where(and(sql`${responses.id} > ${uuidFrom(dayMs)}`, isLost))
}
