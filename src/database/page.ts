import { type SQL, sql } from 'drizzle-orm'
import type { PgColumn, PgTable } from 'drizzle-orm/pg-core'

/**
 * Selects the rows after the row with this id in a list sorted by `created_at`, then `id`, newest first. SQL reads the
 * row's time, because it has microseconds and JavaScript's dates do not. Selects no rows if the organization has no row
 * with this id: callers cannot distinguish another organization's row from a missing one.
 */
export const after = (
  table: PgTable & { id: PgColumn; organizationId: PgColumn; createdAt: PgColumn },
  organizationId: string,
  id: string,
): SQL =>
  sql`(${table.createdAt}, ${table.id}) <
    (SELECT created_at, id FROM ${table} WHERE id = ${id} AND organization_id = ${organizationId})`

/**
 * Cuts a page from rows that were queried with one more than the limit. `next` is the page's last id if more follow.
 */
export function cutPage<Row extends { id: string }>(rows: Row[], limit: number) {
  if (rows.length <= limit) return { rows, next: undefined }
  const page = rows.slice(0, limit)
  return { rows: page, next: page.at(-1)?.id }
}
