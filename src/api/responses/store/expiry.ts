import { type SQL, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { deleteResponses, deleteResponsesOf } from '#database/delete-responses.ts'
import { responses } from '#database/response-schema.ts'
import { lostSql } from './response-rows.ts'

/** Age and number per instance up to which responses can be read. */
const maxAgeDays = 30
const maxPerInstance = 1000
/** How long the events of a background turn stay after its end. */
const eventMinutes = 10
/** The number is checked for instances with a response in this time. The task runs every minute. */
const recentlyActive = '10 minutes'

/**
 * The smallest UUID of version 7 of this age, by the clock of the database: the index of ids finds rows by their time.
 * The clock of the process that made an id may be wrong, so where a row is erased, the time written by the database
 * decides as well.
 */
const firstUuidSince = (interval: string): SQL => {
  const hex = sql`lpad(to_hex((extract(epoch FROM now() - ${interval}::interval) * 1000)::bigint), 12, '0')`
  return sql`(left(${hex}, 8) || '-' || right(${hex}, 4) || '-7000-8000-000000000000')::uuid`
}

/**
 * Deletes responses that are too old, too many for an instance, or of terminated instances, and the events of turns that
 * ended ten minutes ago. Marks responses of dead processes as failed. All steps run even if one fails; the first failure is thrown at the end. After a crash the next
 * run does the rest.
 */
export async function deleteExpiredResponses(db: Db, signal?: AbortSignal): Promise<void> {
  const age = `${maxAgeDays} days`
  const steps = [
    () =>
      deleteResponses(db, sql`WHERE r.id < ${firstUuidSince(age)} AND r.created_at < now() - ${age}::interval`, signal),
    () => deleteResponsesOf(db, sql`i.terminated_at > now() - interval '1 day' AND i.name <> ''`, signal),
    () =>
      deleteResponses(
        db,
        sql`JOIN (
          SELECT active.instance_id, oldest.created_at
          FROM (SELECT DISTINCT instance_id FROM responses WHERE id > ${firstUuidSince(recentlyActive)}) active
          CROSS JOIN LATERAL (SELECT created_at FROM responses k WHERE k.instance_id = active.instance_id
            ORDER BY created_at DESC, id DESC OFFSET ${maxPerInstance} LIMIT 1) oldest
        ) surplus ON surplus.instance_id = r.instance_id AND r.created_at <= surplus.created_at`,
        signal,
      ),
    () => db.update(responses).set({ status: 'failed' }).where(sql.raw(lostSql)).execute(),
    () => deleteOldEvents(db, signal),
  ]
  const failures: unknown[] = []
  for (const step of steps) {
    await step().catch((error: unknown) => failures.push(error))
    signal?.throwIfAborted()
  }
  if (failures.length > 0) throw failures[0]
}

/** Deletes the events of some responses after the others: one may have tens of thousands. */
async function deleteOldEvents(db: Db, signal?: AbortSignal): Promise<void> {
  for (;;) {
    const { rowCount } = await db.execute(sql`
      DELETE FROM response_events WHERE response_id IN (
        SELECT e.response_id FROM response_events e JOIN responses r ON r.id = e.response_id
        WHERE r.sealed_request IS NULL GROUP BY e.response_id
        HAVING max(e.created_at) < now() - make_interval(mins => ${eventMinutes}) LIMIT 10)`)
    if ((rowCount ?? 0) === 0) return
    signal?.throwIfAborted()
  }
}
