import { invalidField } from '#api/responses/format/invalid-field.ts'
import { type KnownItems, noKnownItems } from '#api/responses/format/request.ts'
import { isResponseId, toResponseId, toUuid } from '#api/responses/format/response-writer.ts'
import type { Db } from '#database/client.ts'
import type { ResponseStatus } from '#database/response-schema.ts'
import type { Caller } from '#http/caller.ts'
import { isInScope } from '#http/session-scope.ts'
import { apiSessionId } from '#openclaw/gateway/session-key.ts'
import type { TurnSession } from '#turns/admit.ts'
import { errorTexts } from '#turns/error-texts.ts'
import { lostSql } from './response-rows.ts'

/**
 * The instances and sessions visible to a caller; null means all. With `unstoredId`, that is the only visible response
 * without contents.
 */
export type Visible = Pick<Caller, 'instanceIds' | 'sessions'> & { unstoredId?: string | null | undefined }

/** The earlier responses, items and calls named by a request. */
export interface References {
  previousId: string | null
  itemIds: string[]
  callIds: string[]
}

export const previousResponseError = (why: string) =>
  invalidField('previous_response_id', why, 'previous_response_not_latest')
/** A separate error code: clients that get it begin a new conversation instead of giving up. */
export const unknownPrevious = () =>
  invalidField('previous_response_id', errorTexts.previousUnknown, 'previous_response_not_found')

/** Failed and cancelled turns do not count: clients may repeat them. */
const latestQuery = `
  SELECT id, (created_at, id) < (SELECT created_at, id FROM responses WHERE id = $3) AS "isEarlier" FROM responses
  WHERE instance_id = $1 AND session_key = $2
    AND status IN ('completed', 'incomplete', 'in_progress') AND NOT ${lostSql}
  ORDER BY created_at DESC, id DESC LIMIT 1`

const knownItemsQuery = `
  SELECT item_ids AS "itemIds", call_ids AS "callIds", answered_call_ids AS "answeredCallIds" FROM responses
  WHERE instance_id = $1 AND session_key = $2 AND status <> 'failed' AND NOT ${lostSql}
    AND (item_ids && $3 OR call_ids && $4 OR answered_call_ids && $4)`

const storedTurnsQuery = `
  SELECT id FROM responses WHERE instance_id = $1 AND session_key = $2 AND sealed_object IS NOT NULL
    AND status IN ('completed', 'incomplete', 'cancelled')
    AND (created_at, id) <= (SELECT created_at, id FROM responses WHERE id = $3)
  ORDER BY created_at, id`

const isVisible = ({ instanceIds, sessions }: Visible, { instance, session }: { instance: string; session: string }) =>
  (instanceIds === null || instanceIds.includes(instance)) && isInScope(sessions, apiSessionId(session))

/**
 * Checks that a session can continue from `previousId`. Returns `in_progress` while the turn of that response runs.
 * Throws AppError invalid when the response is not the latest of the session. A response that the caller may not see is
 * unknown.
 */
export async function requireLatestResponse(
  db: Db,
  { organizationId, instanceId, sessionKey }: TurnSession,
  previousId: string,
  visible: Visible,
): Promise<'ended' | 'in_progress'> {
  if (!isResponseId(previousId)) throw unknownPrevious()
  const previous = await db.$client.query<{
    instance: string
    session: string
    status: ResponseStatus
    isLost: boolean
    isUnstored: boolean
  }>(
    `SELECT instance_id AS instance, session_key AS session, status, ${lostSql} AS "isLost",
       sealed_object IS NULL AND sealed_input IS NULL AS "isUnstored" FROM responses
     WHERE id = $1 AND organization_id = $2`,
    [toUuid(previousId), organizationId],
  )
  const [found] = previous.rows
  if (!found || !isVisible(visible, found)) throw unknownPrevious()
  const { unstoredId } = visible
  if (found.isUnstored && unstoredId !== undefined && unstoredId !== previousId) throw unknownPrevious()
  if (found.instance !== instanceId) throw previousResponseError(errorTexts.previousOfOtherInstance)
  if (found.session !== sessionKey) throw previousResponseError(errorTexts.previousOfOtherSession)
  const asked = [instanceId, sessionKey, toUuid(previousId)]
  const [latest] = (await db.$client.query<{ id: string; isEarlier: boolean }>(latestQuery, asked)).rows
  const latestId = latest && toResponseId(latest.id)
  if (latestId === previousId) return found.status === 'in_progress' ? 'in_progress' : 'ended'
  // A turn without effect after the latest response left the session unchanged.
  const cameToNothing = found.isLost || found.status === 'failed' || found.status === 'cancelled'
  if (cameToNothing && (latest === undefined || latest.isEarlier)) return 'ended'
  throw previousResponseError(errorTexts.previousNotLatest(latestId ?? null))
}

/** Finds the ids of the rows of the stored turns of a session up to the one with `lastId`, in their order. */
export async function findStoredTurns(
  db: Db,
  { instanceId, sessionKey }: TurnSession,
  lastId: string,
): Promise<string[]> {
  const { rows } = await db.$client.query<{ id: string }>(storedTurnsQuery, [instanceId, sessionKey, lastId])
  return rows.map(({ id }) => id)
}

/** Finds the items and calls among `references` that a session has. */
export async function findKnownItems(
  db: Db,
  { instanceId, sessionKey }: TurnSession,
  { itemIds, callIds }: References,
): Promise<KnownItems> {
  if (itemIds.length + callIds.length === 0) return noKnownItems
  // PostgreSQL stores no text with U+0000, so no session has such an id.
  const storable = (ids: string[]) => ids.filter((id) => !id.includes('\0'))
  const { rows } = await db.$client.query<{
    itemIds: string[]
    callIds: string[]
    answeredCallIds: string[]
  }>(knownItemsQuery, [instanceId, sessionKey, storable(itemIds), storable(callIds)])
  const answeredCalls = new Set(rows.flatMap((row) => row.answeredCallIds))
  const calls = rows.flatMap((row) => row.callIds)
  return {
    itemIds: new Set(rows.flatMap((row) => row.itemIds)),
    pendingCalls: new Set(calls.filter((id) => !answeredCalls.has(id))),
    answeredCalls,
  }
}
