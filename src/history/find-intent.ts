import { and, eq, inArray, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { events } from '#database/schema.ts'

/**
 * Finds the create or start that raised an instance to this generation, and how long ago that was. Null when something
 * else raised it.
 */
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
