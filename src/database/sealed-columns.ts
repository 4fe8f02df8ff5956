import { type SQL, sql } from 'drizzle-orm'
import type { Place } from '#platform/secrets.ts'
import { type Db, retryOnDeadlock } from './client.ts'

/** A column that holds sealed values, with the primary key of its table. */
export interface SealedColumn {
  table: string
  column: string
  key: string[]
}

/** A sealed value, and its location. */
export interface SealedValue {
  place: Place
  sealed: string
  /** The physical location of the row while it is unchanged. */
  ctid: string
}

/** The rows of a page: a value may have a megabyte. */
const pageRows = 100

/** The column `value` of this table holds sealed and other values, distinguished by their form. */
const mixedTable = 'installation'

/**
 * Every column with a name that begins with `sealed_`, and the values of the installation, which may be sealed as well.
 */
export async function findSealedColumns(db: Db): Promise<SealedColumn[]> {
  const { rows } = await db.execute<SealedColumn & Record<string, unknown>>(sql`
    SELECT c.table_name AS table, c.column_name AS column,
           array_agg(k.column_name::text ORDER BY k.ordinal_position) AS key
    FROM information_schema.columns c
    JOIN information_schema.table_constraints t
      ON t.table_schema = c.table_schema AND t.table_name = c.table_name AND t.constraint_type = 'PRIMARY KEY'
    JOIN information_schema.key_column_usage k
      ON k.constraint_schema = t.constraint_schema AND k.constraint_name = t.constraint_name AND k.table_name = t.table_name
    WHERE c.table_schema = current_schema()
      AND (c.column_name LIKE 'sealed\\_%' OR (c.table_name = ${mixedTable} AND c.column_name = 'value'))
    GROUP BY 1, 2 ORDER BY 1, 2`)
  return rows.map(({ table, column, key }) => ({ table, column, key }))
}

const commaSeparated = (parts: SQL[]) => sql.join(parts, sql`, `)

/**
 * The values of a column in the order of the primary key, a page at a time, without those that begin with `skipped`.
 * Each page is one short statement, however large the table is.
 * Ends at a page that is not full, so that continuous inserts do not keep it going.
 */
export async function* sealedPages(
  db: Db,
  { table, column, key }: SealedColumn,
  skipped = '',
): AsyncGenerator<SealedValue[]> {
  const keys = key.map((name) => sql`${sql.identifier(name)}`)
  const value = sql`${sql.identifier(column)}`
  const isSkipped = skipped === '' ? sql`false` : sql`substr(${value}, 1, ${skipped.length}::int) = ${skipped}`
  const isOther = table === mixedTable ? sql`${value} !~ '^v[0-9]+\\.'` : sql`false`
  let after: string[] | undefined
  for (;;) {
    const isNext =
      after && sql`WHERE (${commaSeparated(keys)}) > (${commaSeparated(after.map((part) => sql`${part}`))})`
    // Erased instances have an empty text in place of their token.
    const { rows } = await db.execute<{ key: string[]; ctid: string; sealed: string | null }>(sql`
      SELECT ARRAY[${commaSeparated(keys.map((name) => sql`${name}::text`))}] AS key, ctid::text AS ctid,
             CASE WHEN NOT (coalesce(${value}, '') = '' OR ${isSkipped} OR ${isOther}) THEN ${value} END AS sealed
      FROM ${sql.identifier(table)} ${isNext ?? sql``}
      ORDER BY ${commaSeparated(keys)} LIMIT ${pageRows}`)
    yield rows.flatMap(({ key: own, ctid, sealed }) =>
      sealed === null ? [] : [{ place: `${table}/${own.join('.')}/${column}` as Place, sealed, ctid }],
    )
    if (rows.length < pageRows) return
    after = rows.at(-1)?.key
  }
}

/**
 * Replaces sealed values in one statement. Keeps a value that has changed since it was read. Records no event, because
 * the content is the same. Returns the number of replaced values.
 */
export async function replaceSealed(
  db: Db,
  { table, column }: SealedColumn,
  replacements: readonly { ctid: string; sealed: string; by: string }[],
): Promise<number> {
  const value = sql`${sql.identifier(column)}`
  const silently = sql`, changed_by = '{"actor_type": "operator", "silent": true}'`
  const texts = (of: 'ctid' | 'sealed' | 'by') => sql`${sql.param(replacements.map((one) => one[of]))}::text[]`
  const { rowCount } = await retryOnDeadlock(() =>
    db.execute(sql`
      UPDATE ${sql.identifier(table)} AS t SET ${value} = r.by ${table === 'instances' ? silently : sql``}
      FROM unnest(${texts('ctid')}::tid[], ${texts('sealed')}, ${texts('by')}) AS r (tid, sealed, by)
      WHERE t.ctid = r.tid AND t.${value} = r.sealed`),
  )
  return rowCount ?? 0
}
