import { sql } from 'drizzle-orm'
import { isProcessAlive } from '#database/processes.ts'

/** Whether the turn of a row of `responses` was lost with its process, as text for SQL. */
export const lostSql = `(status = 'in_progress' AND NOT ${isProcessAlive('responses.process_id')})`
export const isLost = sql.raw(lostSql)
