import { type SQL, sql } from 'drizzle-orm'
import { instances } from '#database/schema.ts'
import { isDue } from '#instances/status.ts'
import { type DoctorDeps, lowestId, pageSize } from './finding.ts'
import { type Page, pagesOf } from './part.ts'

interface InstanceRow {
  id: string
  generation: number
  desired_state: 'running' | 'stopped' | 'terminated'
  region: string | null
  sandbox_driver: string
  attempts: number
  [column: string]: unknown
}
type With<Columns> = InstanceRow & Columns

const columnsOfAll = sql`id, generation, desired_state, region, sandbox_driver, attempts`

/**
 * The due instances for which a condition holds, one by one, in the order of their next attempts; `columns` are selected
 * as well. An index has them in that order, and has no others: settled instances cost nothing.
 */
export async function* findDue<Columns extends Record<string, unknown>>(
  { db }: DoctorDeps,
  condition: SQL,
  columns: SQL = sql``,
): AsyncGenerator<With<Columns>> {
  for (let [since, after] = ['-infinity', lowestId]; ; ) {
    const { rows } = await db.execute<With<Columns> & { since: string }>(sql`
      SELECT ${columnsOfAll}, next_attempt_at::text AS since ${columns} FROM ${instances}
      WHERE ${isDue} AND (next_attempt_at, id) > (${since}::timestamptz, ${after}) AND (${condition})
      ORDER BY next_attempt_at, id LIMIT ${pageSize}`)
    yield* rows as With<Columns>[]
    const last = rows.at(-1)
    if (!last || rows.length < pageSize) return
    ;[since, after] = [last.since, last.id]
  }
}

/** Instances that were read together, with those of them for which the condition holds. */
interface InstancePage<Columns> extends Page {
  ids: string[]
  found: With<Columns>[]
}

/** All instances or a part of them in pages, with those for which a condition holds that has to be evaluated for each. */
export const readInstances = <Columns extends Record<string, unknown>>(
  { db, part }: DoctorDeps,
  check: string,
  condition: SQL,
  columns: SQL = sql``,
): AsyncGenerator<InstancePage<Columns>> =>
  pagesOf(part, check, async function* (from) {
    for (let after = from?.[0] ?? lowestId; ; ) {
      const { rows } = await db.execute<With<Columns> & { holds: boolean | null }>(sql`
        SELECT ${columnsOfAll}, (${condition}) AS holds ${columns} FROM ${instances}
        WHERE id > ${after} ORDER BY id LIMIT ${pageSize}`)
      const last = rows.at(-1)
      if (!last) return
      const found = rows.filter(({ holds }) => holds) as With<Columns>[]
      yield { rows: rows.length, last: [last.id], ids: rows.map(({ id }) => id), found }
      if (rows.length < pageSize) return
      after = last.id
    }
  })

/** The instances for which a condition holds that has to be evaluated for each, one by one. */
export async function* searchInstances<Columns extends Record<string, unknown>>(
  ...search: Parameters<typeof readInstances<Columns>>
): AsyncGenerator<With<Columns>> {
  for await (const { found } of readInstances<Columns>(...search)) yield* found
}
