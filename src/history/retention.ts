import { and, eq, gt, inArray, isNotNull, lt, or, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { events } from '#database/schema.ts'
import { storedBytes } from '#database/stored-bytes-schema.ts'

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
 * Deletes the oldest events of each organization that has more than `maxBytes` of them; 0 deletes none. In batches, and
 * throws the signal's reason between two. Each batch counts again: several processes delete hardly more than one.
 */
export async function deleteSurplusEvents(db: Db, maxBytes: number, signal?: AbortSignal): Promise<void> {
  if (maxBytes === 0) return
  const organizations = await db
    .select({ id: storedBytes.organizationId })
    .from(storedBytes)
    .where(and(eq(storedBytes.kind, 'events'), gt(storedBytes.bytes, maxBytes)))
  for (const { id } of organizations) {
    const isSurplus = sql`(
      SELECT sum(bytes) FROM (
        SELECT bytes FROM stored_bytes WHERE organization_id = ${id} AND kind = 'events'
        UNION ALL SELECT bytes FROM stored_byte_changes WHERE organization_id = ${id} AND kind = 'events'
      ) AS counted) > ${maxBytes}`
    // With the same column first, the index of the organization is read from its beginning.
    const oldest = sql`(
      SELECT id FROM events WHERE organization_id = ${id} AND ${isSurplus} ORDER BY organization_id, id LIMIT ${batchSize})`
    for (;;) {
      const { rowCount } = await db.delete(events).where(sql`${events.id} IN ${oldest}`)
      signal?.throwIfAborted()
      if ((rowCount ?? 0) < batchSize) break
    }
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
