import { inArray, lt, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { events } from '#database/schema.ts'

/** How long an event is kept. */
export const keptDays = 90
/** Maximum rows per statement. */
const batchSize = 1000
const maxId = sql.raw(String(2n ** 63n - 1n))

/**
 * The condition and the order of an organization's events after one. By all columns of its index: for an equation with
 * an order by id the planner may choose the index of ids, and pass over the events of all others.
 */
const eventsOf = (organizationId: string, after = 0) => sql`
  (organization_id, id) > (${organizationId}, ${after}) AND (organization_id, id) < (${organizationId}, ${maxId})
  ORDER BY organization_id, id`

/** Deletes the events that are older than 90 days, in batches. Throws the signal's reason between two batches. */
export async function deleteOldEvents(db: Db, signal?: AbortSignal): Promise<void> {
  const old = db
    .select({ id: events.id })
    .from(events)
    .where(lt(events.createdAt, sql`now() - make_interval(days => ${keptDays})`))
    .limit(batchSize)
  for (;;) {
    const { rowCount } = await db.delete(events).where(inArray(events.id, old))
    if ((rowCount ?? 0) < batchSize) return
    signal?.throwIfAborted()
  }
}

/**
 * Empties the texts in an organization's events that may be the organization's own: names, paths, reasons. The events
 * stay. Begins after the event `after`, and returns the last event before which all are committed, so that a later call
 * may begin there. Works in batches of constant cost, and throws the signal's reason between two.
 */
export async function redactEvents(
  db: Db,
  organizationId: string,
  { after = 0, signal }: { after?: number; signal?: AbortSignal | undefined } = {},
): Promise<number> {
  const settled = await db.execute<{ id: string }>(sql`SELECT settled_event_id() AS id`)
  for (let last = after; ; ) {
    const { rows } = await db.execute<{ last: string | null; events: number }>(sql`
      WITH batch AS (
        SELECT id, subject IS NOT NULL OR reason IS NOT NULL AS has_words FROM events
        WHERE ${eventsOf(organizationId, last)} LIMIT ${batchSize}
      ), redacted AS (
        UPDATE events SET subject = NULL, reason = NULL
        WHERE id = ANY (ARRAY(SELECT id FROM batch WHERE has_words))
      )
      SELECT max(id) AS last, count(*)::int AS events FROM batch`)
    last = Number(rows[0]?.last ?? last)
    if ((rows[0]?.events ?? 0) < batchSize) return Math.max(after, Math.min(last, Number(settled.rows[0]?.id)))
    signal?.throwIfAborted()
  }
}
