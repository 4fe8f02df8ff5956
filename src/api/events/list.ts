import { and, desc, eq, lt } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type Event, events } from '#database/schema.ts'

/**
 * Lists the events of an instance, or of an organization with all its instances, newest first. `position` and `next` are
 * the ids of the last event of the page before and of this page.
 */
export async function listEvents(
  db: Db,
  owner: { instanceId: string } | { organizationId: string },
  { limit, position }: { limit: number; position: number | undefined },
): Promise<{ rows: Event[]; next: number | undefined }> {
  const isOwned =
    'instanceId' in owner ? eq(events.instanceId, owner.instanceId) : eq(events.organizationId, owner.organizationId)
  const rows = await db
    .select()
    .from(events)
    .where(and(isOwned, position === undefined ? undefined : lt(events.id, position)))
    .orderBy(desc(events.id))
    .limit(limit + 1)
  const page = rows.slice(0, limit)
  return { rows: page, next: rows.length > limit ? page.at(-1)?.id : undefined }
}
