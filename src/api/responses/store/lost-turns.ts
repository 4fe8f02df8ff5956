import { sql } from 'drizzle-orm'
import { isId } from '#platform/ids.ts'

/** A turn that no process was seen to work on for so long has lost its own. */
const lostAfterSeconds = 30

/** In SQL, of a row of `responses`. */
export const lostSql = `(status = 'in_progress' AND seen_at < now() - interval '${lostAfterSeconds} seconds')`
export const isLost = sql.raw(lostSql)

/** A response's id is that of its row with `resp_` before it, and without dashes. */
export const toUuid = (id: string) => id.slice('resp_'.length).replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-')
export const isResponseId = (id: string) => id.startsWith('resp_') && id.length === 37 && isId(toUuid(id))
export const toResponseId = (uuid: string) => `resp_${uuid.replaceAll('-', '')}`
