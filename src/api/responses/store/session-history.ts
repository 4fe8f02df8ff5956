import { errorTexts } from '#api/responses/format/error-texts.ts'
import { type KnownItems, noKnownItems } from '#api/responses/format/known-items.ts'
import type { Db } from '#database/client.ts'
import type { ResponseStatus } from '#database/schema.ts'
import { AppError } from '#platform/errors.ts'
import { isResponseId, lostSql, toResponseId, toUuid } from './lost-turns.ts'

/** Whose turn it is, and where. */
export interface SessionRef {
  organizationId: string
  instanceId: string
  sessionKey: string
}

/** What a request names of what came before. */
export interface References {
  previousId: string | null
  itemIds: string[]
  callIds: string[]
}

/** Of its own if it is in nobody's session, so that clients start anew instead of giving up. */
export const previousResponseError = (text: string, code?: string) =>
  new AppError('invalid', `previous_response_id: ${text}`, { param: 'previous_response_id', ...(code && { code }) })
const unknownPrevious = () => previousResponseError(errorTexts.previousUnknown, 'previous_response_not_found')

/** The latest that the session goes on from: a failed or cancelled turn may be tried again from where it began. */
const latestText = `
  SELECT id FROM responses
  WHERE instance_id = $1 AND session_key = $2 AND status IN ('completed', 'incomplete', 'in_progress') AND NOT ${lostSql}
  ORDER BY created_at DESC, id DESC LIMIT 1`

const knownText = `
  SELECT item_ids AS "itemIds", call_ids AS "callIds", answered_call_ids AS "answeredCallIds" FROM responses
  WHERE instance_id = $1 AND session_key = $2 AND status <> 'failed' AND NOT ${lostSql}
    AND (item_ids && $3 OR call_ids && $4 OR answered_call_ids && $4)`

/** Throws AppError invalid unless `previousId` is what the session goes on from; `unsettled` while that one's turn lasts. */
export async function requireLatestResponse(
  db: Db,
  { organizationId, instanceId, sessionKey }: SessionRef,
  previousId: string,
): Promise<'latest' | 'unsettled'> {
  if (!isResponseId(previousId)) throw unknownPrevious()
  const previous = await db.$client.query<{
    instance: string
    session: string
    status: ResponseStatus
    isLost: boolean
  }>(
    `SELECT instance_id AS instance, session_key AS session, status, ${lostSql} AS "isLost" FROM responses
     WHERE id = $1 AND organization_id = $2`,
    [toUuid(previousId), organizationId],
  )
  const [found] = previous.rows
  if (!found) throw unknownPrevious()
  if (found.instance !== instanceId) throw previousResponseError(errorTexts.previousOfOtherInstance)
  if (found.session !== sessionKey) throw previousResponseError(errorTexts.previousOfOtherSession)
  const latest = await db.$client.query<{ id: string }>(latestText, [instanceId, sessionKey])
  const latestId = latest.rows[0] && toResponseId(latest.rows[0].id)
  if (latestId === previousId) return found.status === 'in_progress' ? 'unsettled' : 'latest'
  // It failed, was lost or cancelled after the latest: the session is where that one was.
  const isBehind = found.isLost || found.status === 'failed' || found.status === 'cancelled'
  if (isBehind && (latestId === undefined || latestId < previousId)) return 'latest'
  throw previousResponseError(errorTexts.previousNotLatest(latestId ?? null))
}

/** What a session knows of the items and calls that a request names. */
export async function findKnownItems(
  db: Db,
  { instanceId, sessionKey }: SessionRef,
  { itemIds, callIds }: References,
): Promise<KnownItems> {
  if (itemIds.length + callIds.length === 0) return noKnownItems
  // No text of PostgreSQL holds U+0000, so no session knows such an id.
  const storable = (ids: string[]) => ids.filter((id) => !id.includes('\0'))
  const { rows } = await db.$client.query<{
    itemIds: string[]
    callIds: string[]
    answeredCallIds: string[]
  }>(knownText, [instanceId, sessionKey, storable(itemIds), storable(callIds)])
  const answeredCalls = new Set(rows.flatMap((one) => one.answeredCallIds))
  const made = rows.flatMap((one) => one.callIds)
  return {
    itemIds: new Set(rows.flatMap((one) => one.itemIds)),
    pendingCalls: new Set(made.filter((id) => !answeredCalls.has(id))),
    answeredCalls,
  }
}
