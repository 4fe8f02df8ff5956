import { and, desc, eq, inArray, lt, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type ChangedBy, type Event, events } from '#database/schema.ts'
import { originNow } from './actor.ts'

/** How long the history goes back. */
export const keptDays = 90
/** Rows that one statement clears at most; the next one follows at once. */
const batch = 1000

/**
 * For the column `changed_by` of an instance: whoever this runs for, with the type of the event where it is not what they
 * asked for. The trigger writes the event in the statement's own transaction.
 */
export function changedBy(told: { type?: string; reason?: string } = {}): ChangedBy {
  const origin = originNow()
  origin.isRecorded = true
  const type = told.type ?? origin.type
  return {
    actor_type: origin.actor.type,
    ...(origin.actor.id !== undefined && { actor_id: origin.actor.id }),
    ...(origin.requestId !== undefined && { request_id: origin.requestId }),
    ...(type !== undefined && { type }),
    ...(origin.subject !== undefined && { subject: origin.subject }),
    ...(told.reason !== undefined && { reason: told.reason }),
  }
}

/** What happened to something that is not an instance's row. */
interface Happened {
  organizationId: string
  instanceId?: string | null
  /** By default what was asked for. */
  type?: string
  subject?: string | undefined
  reason?: string | undefined
}

/** Writes what happened, on behalf of whoever this runs for, in the transaction of `db` if it is one. */
export async function recordEvent(db: Db, happened: Happened): Promise<void> {
  const origin = originNow()
  origin.isRecorded = true
  const { actor, requestId, subject } = origin
  const type = happened.type ?? origin.type
  if (type === undefined) throw new Error('an event without a type')
  await db.insert(events).values({ subject, ...happened, type, actorType: actor.type, actorId: actor.id, requestId })
}

/** The history of an instance, or of an organization with all its instances, newest first; of it those before `position`. */
export async function listEvents(
  db: Db,
  of: { instanceId: string } | { organizationId: string },
  { limit, position }: { limit: number; position: number | undefined },
): Promise<{ rows: Event[]; next: number | undefined }> {
  const theirs =
    'instanceId' in of ? eq(events.instanceId, of.instanceId) : eq(events.organizationId, of.organizationId)
  const rows = await db
    .select()
    .from(events)
    .where(and(theirs, position === undefined ? undefined : lt(events.id, position)))
    .orderBy(desc(events.id))
    .limit(limit + 1)
  const page = rows.slice(0, limit)
  return { rows: page, next: rows.length > limit ? page.at(-1)?.id : undefined }
}

/** Which intent raised an instance to this generation, if it wants it to run, and how long ago that was. */
export async function findIntent(
  db: Db,
  instanceId: string,
  generation: number,
): Promise<{ intent: 'create' | 'start'; seconds: number } | null> {
  const [found] = await db
    .select({
      intent: sql<'create' | 'start'>`substr(${events.type}, length('instance.') + 1)`,
      seconds: sql<number>`extract(epoch FROM now() - ${events.createdAt})::float8`,
    })
    .from(events)
    .where(
      and(
        eq(events.instanceId, instanceId),
        eq(events.generation, generation),
        inArray(events.type, ['instance.create', 'instance.start']),
      ),
    )
    .limit(1)
  return found ?? null
}

/** Empties the words in an organization's history, which may be its own: what happened and when stays. */
export const forgetWords = (db: Db, organizationId: string) =>
  db.update(events).set({ subject: null, reason: null }).where(eq(events.organizationId, organizationId))

/** Deletes the events that are older than the history goes back, in batches. Throws the signal's reason between two. */
export async function clearOldEvents(db: Db, signal?: AbortSignal): Promise<void> {
  const old = db
    .select({ id: events.id })
    .from(events)
    .where(sql`${events.createdAt} < now() - make_interval(days => ${keptDays})`)
    .limit(batch)
  while (((await db.delete(events).where(inArray(events.id, old))).rowCount ?? 0) === batch) signal?.throwIfAborted()
}
