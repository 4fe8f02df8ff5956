import { summaryOpener } from '#api/responses/compaction/sealed-summary.ts'
import { readRequest } from '#api/responses/format/request.ts'
import { type CreateResponse, includesTools } from '#api/responses/format/request-schema.ts'
import type { ResponseObject } from '#api/responses/format/response-schema.ts'
import { newResponseId, nowInSeconds, queued, responseObject } from '#api/responses/format/response-writer.ts'
import { storedInput } from '#api/responses/format/stored-input.ts'
import { beginResponse } from '#api/responses/store/begin-response.ts'
import type { ResponseStore } from '#api/responses/store/response-store.ts'
import type { Visible } from '#api/responses/store/session-history.ts'
import type { Db } from '#database/client.ts'
import { AppError } from '#errors/app-error.ts'
import type { Caller } from '#http/caller.ts'
import type { Vault } from '#platform/secrets.ts'
import { type Admission, endUserOf, type TurnSession } from '#turns/admit.ts'
import { errorTexts } from '#turns/error-texts.ts'
import { sessionBusy } from '#turns/line.ts'
import { type BackgroundRequest, checkBackgroundFields, runOf } from './background-request.ts'
import type { BackgroundRows } from './background-rows.ts'

/** Background turns of an instance that run or wait. Each holds a row, and a connection is shared by all. */
const maxOfInstance = 100
const retryAfterSeconds = 5

/** The part of a caller that decides whose turn it is, and which sessions it may continue. */
type Asking = Pick<Caller, 'token'> & Visible

export interface AcceptParts {
  admission: Admission
  store: ResponseStore
  rows: Pick<BackgroundRows, 'countOf'>
  vault: Vault
}

/**
 * Accepts a background turn with `into`, a database or a transaction, and returns its `queued` response. Throws AppError when the
 * request is invalid or has what a background turn would drop, when the instance has too many of them, and the errors
 * of `admit`. Nothing is stored then.
 */
export async function acceptBackground(
  { admission, store, rows, vault }: AcceptParts,
  { caller, session, body, into }: { caller: Asking; session: TurnSession; body: CreateResponse; into: Db },
): Promise<ResponseObject> {
  const asker = { caller, user: body.user }
  // The turn waits for an agent that wakes, not the request.
  const gateway = await admission.admit(asker, session, { waits: false })
  const request = readRequest(body, gateway, summaryOpener(vault, session))
  checkBackgroundFields(body)
  if ((await rows.countOf(session.instanceId)) >= maxOfInstance) {
    throw new AppError('too_much_in_flight', errorTexts.tooManyInBackground(maxOfInstance), { retryAfterSeconds })
  }
  if (body.on_busy === 'reject' && (await store.isBusy(session))) throw sessionBusy()
  const { echo, items } = request
  const draft = { id: newResponseId(), createdAt: nowInSeconds(), echo }
  const response = responseObject(draft, queued, [])
  await beginResponse(
    store,
    { session, caller, request },
    ({ offset, answeredCallIds }) => {
      const background: BackgroundRequest = {
        createdAt: draft.createdAt,
        echo,
        model: body.model,
        endUser: endUserOf(asker),
        isResumed: body.on_interrupted === 'resume',
        includesTools: includesTools(body),
        run: runOf(request, gateway, offset),
      }
      return {
        ...session,
        id: draft.id,
        isStored: true,
        response: () => response,
        input: () => storedInput(items),
        answeredCallIds,
        backgroundRequest: JSON.stringify(background),
      }
    },
    into,
  )
  if (body.on_busy === 'interrupt') await store.cancelOthers(session, draft.id)
  return response
}
