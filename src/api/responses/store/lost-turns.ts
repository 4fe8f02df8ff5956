import { sql } from 'drizzle-orm'

/** How often, in ms, a process reports the turns that it runs. */
export const reportEveryMs = 2000
/** A report is written to a row only after this time since the last one. */
export const rewriteReportAfterSeconds = 10
/** A turn without a report for this time is lost: its process has ended. */
const lostAfterSeconds = 30

/** Whether the turn of a row of `responses` is lost, as text for SQL. */
export const lostSql = `(status = 'in_progress' AND seen_at < now() - interval '${lostAfterSeconds} seconds')`
export const isLost = sql.raw(lostSql)
