import { type SQL, sql } from 'drizzle-orm'
import type { PgTable } from 'drizzle-orm/pg-core'
import type { Db } from './client.ts'

/** Deletes at most `rows` matching rows of a table. Returns their number. */
export async function deleteSome(db: Db, table: PgTable, condition: SQL | undefined, rows: number): Promise<number> {
  const some = sql`SELECT ctid FROM ${table} WHERE ${condition} LIMIT ${rows}`
  const { rowCount } = await db.delete(table).where(sql`ctid = ANY (ARRAY(${some}))`)
  return rowCount ?? 0
}

/** Deletes the matching rows, `rows` per statement. Throws the signal's reason between two of them. */
export async function deleteInBatches(
  db: Db,
  table: PgTable,
  condition: SQL | undefined,
  { rows = 1000, signal }: { rows?: number; signal?: AbortSignal | undefined } = {},
): Promise<void> {
  while ((await deleteSome(db, table, condition, rows)) > 0) signal?.throwIfAborted()
}
