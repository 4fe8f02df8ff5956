import { and, eq, inArray, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { events, instances } from '#database/schema.ts'

/**
 * Finds the create, start or restart that raised an instance to this generation, and its age. Null when something else
 * raised it.
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

/** The number of most recent events that are searched for the latest intent. */
const recentEvents = 50

/**
 * The request that raised an instance to its generation; null if no request did. Compares and sorts by all columns of
 * an index: for an instance with most of the events, the planner would otherwise search all events for another
 * instance's by their ids.
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
