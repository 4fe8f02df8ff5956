import { sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { instances } from '#database/schema.ts'
import { isPlacedAt, type Place, placeOf } from '#instances/claim.ts'
import { isDue, isDueNow } from '#instances/status.ts'

/**
 * Finds the regions and drivers with rows that wait for a worker: their job was lost, or their next attempt is due.
 * Skips from one to the next by the index of claims, however many rows are due.
 */
export async function findWaiting(db: Db): Promise<Place[]> {
  const { sandboxDriver: driver, organizationId, nextAttemptAt } = instances
  const { rows } = await db.execute<Place & Record<string, unknown>>(sql`
    WITH RECURSIVE place AS (
      (SELECT ${driver} AS driver, ${placeOf} AS region FROM ${instances} WHERE ${isDue}
       ORDER BY ${driver}, ${placeOf} LIMIT 1)
      UNION ALL
      SELECT next.driver, next.region FROM place CROSS JOIN LATERAL (
        SELECT ${driver} AS driver, ${placeOf} AS region FROM ${instances}
        WHERE ${isDue} AND (${driver}, ${placeOf}) > (place.driver, place.region)
        ORDER BY ${driver}, ${placeOf} LIMIT 1
      ) next
    )
    SELECT place.driver, place.region FROM place CROSS JOIN LATERAL (
      SELECT FROM ${instances} WHERE ${isPlacedAt(sql`place`)} AND ${isDueNow}
      ORDER BY ${organizationId}, ${nextAttemptAt} LIMIT 1
    ) waiting`)
  return rows
}
