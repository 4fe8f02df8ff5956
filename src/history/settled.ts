import type { Db } from '#database/client.ts'

/**
 * The id up to which every event is committed. Ids come from a sequence, so a later one may be committed first; the
 * trigger `events_writer` shows which ids are still open. Read it before the events, in a separate statement.
 */
export async function settledId(db: Pick<Db, '$client'>): Promise<number> {
  const { rows } = await db.$client.query<{ id: string }>('SELECT settled_event_id() AS id')
  return Number(rows[0]?.id)
}
