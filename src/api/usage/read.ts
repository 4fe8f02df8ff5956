import { type SQL, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { instances } from '#database/schema.ts'
import { modelCalls } from '#database/usage-schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'

export const groupNames = ['instance', 'session', 'end_user', 'model', 'provider', 'cause'] as const
export const labelPrefix = 'metadata.'
/** One of `groupNames`, or a label: `metadata.` and its key. */
export type Group = (typeof groupNames)[number] | (string & {})

export interface UsageFilter {
  organizationId: string
  instanceId: string | undefined
  /** The labels that instances must have. */
  labels: Readonly<Record<string, string>> | undefined
  from: Date
  to: Date
  /** Null: one bucket for the whole time. */
  bucket: 'hour' | 'day' | 'month' | null
  timeZone: string
  groups: readonly Group[]
}

const sumColumns = {
  calls: sql`count(*)`,
  cut_calls: sql`count(*) FILTER (WHERE outcome = 'cut')`,
  lost_calls: sql`count(*) FILTER (WHERE outcome = 'lost')`,
  calls_without_tokens: sql`count(*) FILTER (WHERE input_tokens IS NULL)`,
  calls_without_price: sql`count(*) FILTER (WHERE input_tokens IS NOT NULL AND cost IS NULL)`,
  input_tokens: sql`coalesce(sum(input_tokens), 0)`,
  cache_read_tokens: sql`coalesce(sum(cache_read_tokens), 0)`,
  cache_write_tokens: sql`coalesce(sum(cache_write_tokens), 0)`,
  output_tokens: sql`coalesce(sum(output_tokens), 0)`,
  reasoning_tokens: sql`coalesce(sum(reasoning_tokens), 0)`,
  estimated_cost: sql`coalesce(sum(cost), 0)`,
}
type Sums = Record<keyof typeof sumColumns, number>
const sumNames = Object.keys(sumColumns) as (keyof Sums)[]

/** The error code of PostgreSQL. */
const unknownTimeZone = '22023'

/** The sums of a bucket for one value of each group; an empty text means none. */
export interface UsageRow {
  /** The beginning of the whole bucket; `from` and `to` bound the requested part. */
  begin: Date
  from: Date
  to: Date
  keys: string[]
  sums: Sums
}

/** The sort key of rows: the beginning of a bucket and the values of the groups. */
export type UsagePosition = readonly [begin: string, ...keys: string[]]

export const positionAt = ({ begin, keys }: UsageRow): UsagePosition => [begin.toISOString(), ...keys]

const columnOf: Record<(typeof groupNames)[number], SQL> = {
  instance: sql`${modelCalls.instanceId}::text`,
  session: sql`${modelCalls.session}`,
  end_user: sql`${modelCalls.endUser}`,
  model: sql`${modelCalls.model}`,
  provider: sql`${modelCalls.provider}`,
  cause: sql`${modelCalls.cause}`,
}

const labelOf = (group: string) => sql`${instances.metadata} ->> ${group.slice(labelPrefix.length)}`

/** The value of a group. Sorted by its bytes, so that pages do not depend on the locale of the database. */
const groupValue = (group: Group): SQL =>
  sql`coalesce(${columnOf[group as keyof typeof columnOf] ?? labelOf(group)}, '') COLLATE "C"`

/** Adds up calls by buckets and groups, sorted by both, from the bucket of `position` on. Selects the rows after it. */
function usageQuery(
  { organizationId, instanceId, labels, from, to, bucket, timeZone, groups }: UsageFilter,
  position?: UsagePosition,
): SQL {
  const { beganAt } = modelCalls
  const first = sql`${from.toISOString()}::timestamptz`
  const last = sql`${to.toISOString()}::timestamptz`
  // A bucket has the same beginning in all pages, although `from` may differ between them.
  const begin = bucket === null ? sql`'epoch'::timestamptz` : sql`date_trunc(${bucket}, ${beganAt}, ${timeZone})`
  const keys = groups.map((group, index) => sql`${groupValue(group)} AS ${sql.identifier(`key_${index}`)}`)
  const names = groups.map((_, index) => sql.identifier(`key_${index}`))
  const sortedBy = sql.join([sql`begin`, ...names], sql`, `)
  const localBegin = sql`begin AT TIME ZONE ${timeZone}`
  const ends = {
    hour: sql`begin + interval '1 hour'`,
    // Where clocks skip midnight, a day begins at 1:00.
    day: sql`(date_trunc('day', ${localBegin}) + interval '1 day') AT TIME ZONE ${timeZone}`,
    month: sql`(date_trunc('month', ${localBegin}) + interval '1 month') AT TIME ZONE ${timeZone}`,
  }
  const end = bucket === null ? last : ends[bucket]
  const conditions = [
    sql`${modelCalls.organizationId} = ${organizationId} AND ${beganAt} >= ${first} AND ${beganAt} < ${last}`,
    ...(instanceId === undefined ? [] : [sql`${modelCalls.instanceId} = ${instanceId}`]),
    ...(labels === undefined ? [] : [sql`${instances.metadata} @> ${JSON.stringify(labels)}::jsonb`]),
    ...(position === undefined || bucket === null ? [] : [sql`${beganAt} >= ${position[0]}::timestamptz`]),
  ]
  const hasLabels = labels !== undefined || groups.some((group) => group.startsWith(labelPrefix))
  return sql`
    WITH calls AS (
      SELECT ${sql.join([sql`${begin} AS begin`, ...keys], sql`, `)}, outcome, input_tokens, cache_read_tokens,
        cache_write_tokens, output_tokens, reasoning_tokens, cost
      FROM ${modelCalls} ${hasLabels ? sql`JOIN ${instances} ON ${instances.id} = ${modelCalls.instanceId}` : sql``}
      WHERE ${sql.join(conditions, sql` AND `)}
    ), sums AS (
      SELECT ${sortedBy}, ${sql.join(
        sumNames.map((name) => sql`${sumColumns[name]} AS ${sql.identifier(name)}`),
        sql`, `,
      )}
      FROM calls GROUP BY ${sortedBy}
    )
    SELECT *, ${inMs(sql`begin`)} AS begin_ms, ${inMs(sql`greatest(begin, ${first})`)} AS from_ms,
      ${inMs(sql`least(${end}, ${last})`)} AS to_ms
    FROM sums
    ${position === undefined ? sql`` : sql`WHERE (${sortedBy}) > (${positionValues(position)})`}
    ORDER BY ${sortedBy}`
}

/** Throws AppError `invalid_value` for a time zone that PostgreSQL does not know. */
async function rowsOf(db: Db, { groups }: UsageFilter, query: SQL): Promise<UsageRow[]> {
  const found = await db
    .execute<Record<string, string | number>>(query)
    .catch((error: { cause?: { code?: string } }) => {
      if (error.cause?.code !== unknownTimeZone) throw error
      throw new AppError('invalid_value', texts.unknownTimeZone, { param: 'time_zone' })
    })
  const dateOf = (ms: unknown) => new Date(Number(ms))
  return found.rows.map((row) => ({
    begin: dateOf(row.begin_ms),
    from: dateOf(row.from_ms),
    to: dateOf(row.to_ms),
    keys: groups.map((_, index) => String(row[`key_${index}`])),
    sums: Object.fromEntries(sumNames.map((name) => [name, Number(row[name])])) as Sums,
  }))
}

/** Reads at most `limit` rows after `position`. Throws the error of `rowsOf`. */
export const readUsage = (db: Db, filter: UsageFilter, limit: number, position?: UsagePosition): Promise<UsageRow[]> =>
  rowsOf(db, filter, sql`${usageQuery(filter, position)} LIMIT ${limit}`)

/** Rows of an export read at once. */
const exportRows = 1000

/**
 * Adds up all calls once, and hands the rows over in portions. Holds a connection until the last one is taken. Throws
 * the error of `rowsOf`, and those of `take`.
 */
export function readAllUsage(db: Db, filter: UsageFilter, take: (rows: UsageRow[]) => Promise<void>): Promise<void> {
  return db.transaction(async (tx) => {
    await rowsOf(tx, filter, sql`DECLARE usage_export NO SCROLL CURSOR FOR ${usageQuery(filter)}`)
    for (let rows: UsageRow[] | undefined; rows === undefined || rows.length === exportRows; ) {
      rows = await rowsOf(tx, filter, sql`FETCH ${sql.raw(String(exportRows))} FROM usage_export`)
      await take(rows)
    }
  })
}

const inMs = (time: SQL): SQL => sql`(extract(epoch FROM ${time}) * 1000)::bigint`

const positionValues = ([begin, ...keys]: UsagePosition): SQL =>
  sql.join([sql`${begin}::timestamptz`, ...keys.map((key) => sql`${key}`)], sql`, `)
