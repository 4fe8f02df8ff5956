import { type CheckedRequest, noKnownItems, referencedIds, skipKnownItems } from '#api/responses/format/request.ts'
import type { Db } from '#database/client.ts'
import type { TurnSession } from '#turns/admit.ts'
import type { StartedResponse } from './response-rows.ts'
import type { ResponseStore } from './response-store.ts'
import type { Visible } from './session-history.ts'

interface Beginning {
  session: TurnSession
  caller: Visible
  request: Pick<CheckedRequest, 'items' | 'echo'>
}

/**
 * Stores the beginning of a response. `start` gets the number of items that the session already has, and the pending
 * calls that the further ones answer, and returns the row; nothing is stored when it throws. With `into` it is a
 * background turn, whose row is written with that. Throws AppError invalid for a reference that the session does not have.
 */
export async function beginResponse<Started extends StartedResponse>(
  store: ResponseStore,
  { session, caller, request: { items, echo } }: Beginning,
  start: (known: ReturnType<typeof skipKnownItems>) => Started,
  into?: Db,
): Promise<Started> {
  const references = { ...referencedIds(items), previousId: echo.previous_response_id }
  if (references.previousId !== null || references.itemIds.length + references.callIds.length > 0) {
    return store.beginContinuation(session, references, caller, (known) => start(skipKnownItems(items, known)), into)
  }
  const started = start(skipKnownItems(items, noKnownItems))
  if (into) await store.beginBackground(into, started)
  else store.begin(started)
  return started
}
