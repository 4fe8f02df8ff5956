import { and, eq, inArray, isNotNull, lt, or, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { events } from '#database/schema.ts'

/** How long an event is kept. */
export const keptDays = 90
/** Rows that one statement deletes at most. */
const batchSize = 1000

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
 * Empties the texts in an organization's events that may be its own: names, paths, reasons. The events stay. In batches,
 * and throws the signal's reason between two.
 */
export async function redactEvents(db: Db, organizationId: string, signal?: AbortSignal): Promise<void> {
  const withWords = db
    .select({ id: events.id })
    .from(events)
    .where(and(eq(events.organizationId, organizationId), or(isNotNull(events.subject), isNotNull(events.reason))))
    .limit(batchSize)
  for (;;) {
    const { rowCount } = await db
      .update(events)
      .set({ subject: null, reason: null })
      .where(inArray(events.id, withWords))
    if ((rowCount ?? 0) < batchSize) return
    signal?.throwIfAborted()
  }
}
