import { type SQL, sql } from 'drizzle-orm'
import type { PgColumn, PgTable } from 'drizzle-orm/pg-core'

/**
 * Of a list newest first (by `created_at`, then `id`), the rows that come after the organization's one with this id. By
 * the row itself, because its time has microseconds that JavaScript's dates do not hold. None when it has no such row:
 * another organization's must not be told from one that never was.
 */
export const after = (
  table: PgTable & { id: PgColumn; organizationId: PgColumn; createdAt: PgColumn },
  organizationId: string,
  id: string,
): SQL =>
  sql`(${table.createdAt}, ${table.id}) <
    (SELECT created_at, id FROM ${table} WHERE id = ${id} AND organization_id = ${organizationId})`

/** Cuts a page out of rows that were asked for with one more than the limit; `next` is the id it ends with if more follow. */
export function cutPage<Row extends { id: string }>(rows: Row[], limit: number | undefined) {
  if (limit === undefined || rows.length <= limit) return { rows, next: undefined }
  const page = rows.slice(0, limit)
  return { rows: page, next: page.at(-1)?.id }
}
