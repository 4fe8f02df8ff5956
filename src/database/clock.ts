import { sql } from 'drizzle-orm'
import type { Db } from './client.ts'

/** The time of the database in ms since 1970, common to processes with different clocks. */
export const databaseMs = sql<number>`(extract(epoch FROM now()) * 1000)::float8`

/** Reads the time of the database, in ms since 1970. */
export async function readDatabaseMs(db: Db): Promise<number> {
  const { rows } = await db.execute<{ ms: number }>(sql`SELECT ${databaseMs} AS ms`)
  return rows[0]?.ms ?? Number.NaN
}
