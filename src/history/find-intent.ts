import { and, eq, inArray, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { events, instances } from '#database/schema.ts'

/**
 * Finds the create, start or restart that raised an instance to this generation, and how long ago that was. Null when
 * something else raised it.
 */
export async function findIntent(
  db: Db,
  instanceId: string,
  generation: number,
): Promise<{ intent: 'create' | 'start' | 'restart'; seconds: number } | null> {
  const [found] = await db
    .select({
      intent: sql<'create' | 'start' | 'restart'>`substr(${events.type}, length('instance.') + 1)`,
      seconds: sql<number>`extract(epoch FROM now() - ${events.createdAt})::float8`,
    })
    .from(events)
    .where(
      and(
        eq(events.instanceId, instanceId),
        eq(events.generation, generation),
        inArray(events.type, ['instance.create', 'instance.start', 'instance.restart']),
      ),
    )
    .limit(1)
  return found ?? null
}

/** The most recent events of an instance among which the one of its latest intent is looked for. */
const recentEvents = 50

/**
 * The request that raised the row of a statement on `instances` to its generation; null when no request did. Compares
 * and sorts by all columns of an index: where one instance has most events, the planner would else look for those of
 * another instance by their ids, among all events.
 */
export const requestOfIntent = sql<string | null>`(
  SELECT recent.request_id
  FROM (
    SELECT id, generation, request_id FROM events
    WHERE (instance_id, id) > (instances.id, 0) AND (instance_id, id) < (instances.id, ${sql.raw(String(2n ** 63n - 1n))})
    ORDER BY instance_id DESC, id DESC LIMIT ${sql.raw(String(recentEvents))}
  ) recent
  WHERE recent.generation = instances.generation
  ORDER BY recent.id LIMIT 1)`

/** The same for an instance and a generation of it. */
export async function findRequest(db: Db, instanceId: string, generation: number): Promise<string | null> {
  const [row] = await db
    .select({ requestId: requestOfIntent })
    .from(instances)
    .where(and(eq(instances.id, instanceId), eq(instances.generation, generation)))
  return row?.requestId ?? null
}
