import { callsKeptDays } from '#database/model-calls.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { requireTimeZone } from '#platform/time-zone.ts'
import { parseTimestamp } from '#platform/timestamps.ts'
import type { UsageFilter } from './read.ts'
import type { UsageQuery } from './schemas.ts'

const dayMs = 24 * 60 * 60 * 1000
const defaultDays = 30

function timeOf(text: string | undefined, param: string, otherwise: Date): Date {
  if (text === undefined) return otherwise
  const time = parseTimestamp(text)
  if (!time) throw new AppError('invalid_value', texts.badTime(param), { param })
  return time
}

/**
 * The calls that a query selects. `nowMs` is the time of the database. Throws AppError `invalid_value` for a text that
 * is not a time, and for a range that is empty or too long.
 */
export function filterOf(
  organizationId: string,
  query: UsageQuery,
  instanceId: string | undefined,
  nowMs: number,
): UsageFilter {
  const to = timeOf(query.to, 'to', new Date(nowMs))
  const from = timeOf(query.from, 'from', new Date(to.getTime() - defaultDays * dayMs))
  if (from >= to) throw new AppError('invalid_value', texts.emptyTime, { param: 'from' })
  if (to.getTime() - from.getTime() > callsKeptDays * dayMs) {
    throw new AppError('invalid_value', texts.longTime(callsKeptDays), { param: 'from' })
  }
  requireTimeZone(query.time_zone)
  return {
    organizationId,
    instanceId,
    labels: query.metadata,
    from,
    to,
    bucket: query.bucket ?? null,
    timeZone: query.time_zone,
    groups: query.group_by ?? [],
  }
}

/** Whether a text is the position of a row of this query: the beginning of a bucket, and a text for each group. */
export const isPositionOf =
  ({ groups }: Pick<UsageFilter, 'groups'>) =>
  (text: string): boolean => {
    try {
      const values: unknown = JSON.parse(text)
      if (!Array.isArray(values) || values.length !== groups.length + 1) return false
      const [begin] = values
      return (
        values.every((value) => typeof value === 'string' && !value.includes('\0')) && parseTimestamp(begin) !== null
      )
    } catch {
      return false
    }
  }
