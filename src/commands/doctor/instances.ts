import { type SQL, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { instances } from '#database/schema.ts'
import { lowestId, pageSize } from './finding.ts'

interface InstanceRow {
  id: string
  generation: number
  desired_state: 'running' | 'stopped' | 'terminated'
  region: string | null
  sandbox_driver: string
  attempts: number
  [column: string]: unknown
}

/** The instances for which a condition holds, a page at a time; `columns` are selected as well. */
export async function* findPages<Columns extends Record<string, unknown>>(
  db: Db,
  condition: SQL,
  columns: SQL = sql``,
): AsyncGenerator<(InstanceRow & Columns)[]> {
  for (let after = lowestId; ; ) {
    const { rows } = await db.execute<InstanceRow & Columns>(sql`
      SELECT id, generation, desired_state, region, sandbox_driver, attempts ${columns} FROM ${instances}
      WHERE id > ${after} AND (${condition}) ORDER BY id LIMIT ${pageSize}`)
    yield rows as (InstanceRow & Columns)[]
    const last = rows.at(-1)
    if (!last || rows.length < pageSize) return
    after = last.id
  }
}

/** The same, one by one. */
export async function* findInstances<Columns extends Record<string, unknown>>(db: Db, condition: SQL, columns?: SQL) {
  for await (const page of findPages<Columns>(db, condition, columns)) yield* page
}
