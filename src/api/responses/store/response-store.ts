import { and, eq, ne, sql } from 'drizzle-orm'
import type { KnownItems } from '#api/responses/format/request.ts'
import type { ResponseObject } from '#api/responses/format/response-schema.ts'
import { isResponseId, toResponseId, toUuid } from '#api/responses/format/response-writer.ts'
import type { StoredItem } from '#api/responses/format/stored-input.ts'
import type { Db } from '#database/client.ts'
import { type ResponseStatus, responseEvents, responses } from '#database/response-schema.ts'
import { AppError } from '#errors/app-error.ts'
import { isInScope, type SessionScope } from '#http/session-scope.ts'
import { apiSessionId } from '#openclaw/gateway/session-key.ts'
import type { Logger } from '#platform/log.ts'
import { poll } from '#platform/poll.ts'
import type { Vault } from '#platform/secrets.ts'
import type { TurnSession } from '#turns/admit.ts'
import { errorTexts } from '#turns/error-texts.ts'
import { createResponseRows, lostSql, type StartedResponse } from './response-rows.ts'
import { createRunningResponses, globalSessionKey } from './running-responses.ts'
import {
  findKnownItems,
  findStoredTurns,
  previousResponseError,
  type References,
  requireLatestResponse,
  unknownPrevious,
  type Visible,
} from './session-history.ts'

/** How long a continuation waits for the end of the previous turn, which another process may be about to write. */
const previousEndTimeoutMs = 1000
const previousEndPollMs = 25
/** How long a continuation waits while others begin in the same session. Each takes milliseconds. */
const lockTimeoutMs = 10_000
const pauseMs = (checks: number) => Math.min(25 * 1.5 ** (checks - 1), 250)

export interface ResponseStore {
  /**
   * Stores the beginning of a turn, in the background and within milliseconds. A turn that ends before that is stored
   * once. The turn is ended when its response is cancelled, in this process or another. Stores nothing for an instance
   * that was terminated meanwhile.
   */
  begin(started: StartedResponse): void
  /** Stores a background turn with `into`, such as a transaction. Its end is not stored by `finish`. */
  beginBackground(into: Db, started: StartedResponse): Promise<void>
  /**
   * Stores the beginning of a turn that continues earlier ones. `prepare` gets the referenced items of the session, and
   * returns the row to store. Of two calls for one session the second waits for the first. Throws AppError invalid when
   * `previousId` is not the latest response of the session, and the errors of `prepare`. Responses that are not
   * `visible` are unknown. `into` may be a transaction, which then holds its connection meanwhile.
   */
  beginContinuation<T extends StartedResponse>(
    session: TurnSession,
    references: References,
    visible: Visible,
    prepare: (known: KnownItems) => T,
    into?: Db,
  ): Promise<T>
  /**
   * Stores the end of a turn with the JSON of its response. Returns at once, and retries for minutes while the database
   * is unavailable. Reads of this process wait for it some seconds, then throw AppError unavailable.
   */
  finish(response: ResponseObject, json: string): void
  /** Throws AppError not_found. */
  find(owner: Owner, id: string): Promise<ResponseObject>
  /** Returns the input items in their order. Throws AppError not_found. */
  findInput(owner: Owner, id: string): Promise<StoredItem[]>
  /**
   * Returns the stored turns of a session up to one response, in their order, without those that failed. The session is
   * that of the response when `sessionKey` is null. Throws AppError invalid for a response that is in progress, is not
   * stored or belongs to another session, and too_large.
   */
  findConversation(owner: Owner, id: string, sessionKey: string | null): Promise<StoredTurn[]>
  /**
   * Cancels a response in progress, whichever process runs it. Throws AppError not_found, or conflict when it has
   * ended.
   */
  cancel(owner: Owner, id: string): Promise<void>
  /** Cancels all responses in progress of a session but one, whichever processes run them. */
  cancelOthers(session: TurnSession, id: string): Promise<void>
  /** Whether a session has a response in progress. */
  isBusy(session: TurnSession): Promise<boolean>
  /** Deletes the contents of a response. Throws AppError not_found, or conflict while it is in progress. */
  delete(owner: Owner, id: string): Promise<void>
  /** Writes pending changes, for up to 5 s. */
  close(): Promise<void>
}

/** An instance, its required organization, and the sessions visible to the caller. */
interface Owner {
  organizationId: string
  instanceId: string
  sessions: SessionScope | null
}

/** The contents of a turn. An input may repeat the items of earlier turns. */
interface StoredTurn {
  input: StoredItem[]
  output: ResponseObject['output']
}

/** Maximum sealed size of a conversation, about that of a request. */
const maxConversationMebibytes = 16

export const responseNotFound = () => new AppError('response_not_found', errorTexts.responseNotFound)

interface Row {
  id: string
  sessionKey: string
  status: ResponseStatus
  sealedObject: string | null
  sealedInput: string | null
  isSent: boolean
  isLost: boolean
}

const isLost = sql.raw(lostSql)

const isOwned = ({ organizationId, instanceId }: Owner, id: string) =>
  and(eq(responses.id, toUuid(id)), eq(responses.organizationId, organizationId), eq(responses.instanceId, instanceId))

const isInProgress = ({ instanceId, sessionKey }: TurnSession) =>
  and(
    eq(responses.instanceId, instanceId),
    eq(responses.sessionKey, sessionKey),
    eq(responses.status, 'in_progress'),
    sql`NOT ${isLost}`,
  )

/**
 * Stores responses in the database, with their contents sealed. `processId` is the id of this process in the table
 * `processes`.
 */
export function createResponseStore(db: Db, vault: Vault, processId: string, log: Pick<Logger, 'warn'>): ResponseStore {
  const rows = createResponseRows(db, vault, processId)
  const running = createRunningResponses(db, rows, log)

  async function findRow(owner: Owner, id: string): Promise<Row> {
    if (!isResponseId(id)) throw responseNotFound()
    await running.written((response) => response.id === id)
    const [row] = await db
      .select({
        id: responses.id,
        sessionKey: responses.sessionKey,
        status: responses.status,
        sealedObject: responses.sealedObject,
        sealedInput: responses.sealedInput,
        isSent: sql<boolean>`${responses.sentAt} IS NOT NULL`,
        isLost: sql<boolean>`${isLost}`,
      })
      .from(responses)
      .where(isOwned(owner, id))
    if (!row || !isInScope(owner.sessions, apiSessionId(row.sessionKey))) throw responseNotFound()
    return row
  }

  /**
   * The object was sealed at the beginning or end of the turn. A later cancel or loss of the turn, or the end of its
   * wait, is only in the row.
   */
  function unseal({ id, status, sealedObject, isSent, isLost }: Row): ResponseObject {
    if (sealedObject === null) throw responseNotFound()
    const object = rows.unsealObject(id, sealedObject)
    if (isLost || (status === 'failed' && object.status === 'in_progress')) {
      return { ...object, status: 'failed', error: { code: 'lost', message: errorTexts.lost } }
    }
    if (object.status === 'queued' && status === 'in_progress') return isSent ? { ...object, status } : object
    if (status !== 'cancelled') return object
    return { ...object, status, completed_at: null, error: null, incomplete_details: { reason: 'cancelled' } }
  }

  return {
    begin: running.begin,
    beginBackground: async (into, started) => void (await rows.insert(into, [rows.toInsert(started)])),
    async beginContinuation(session, references, visible, prepare, into = db) {
      const { previousId } = references
      const lock = globalSessionKey(session)
      await running.written((response) => response.session === lock || response.id === previousId)
      const begin = () =>
        into.transaction(async (tx) => {
          // Of two turns that continue the same response, the second must see the first. It does not wait here: a burst
          // in one session would otherwise hold all connections of the process.
          const { rows: locks } = await tx.$client.query<{ mine: boolean }>(
            'SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0)) AS mine',
            [lock],
          )
          if (!locks[0]?.mine) return 'busy'
          if (previousId !== null && (await requireLatestResponse(tx, session, previousId, visible)) === 'in_progress')
            return null
          const started = prepare(await findKnownItems(tx, session, references))
          await rows.insert(tx, [rows.toInsert(started)])
          return started
        })
      const tryBegin = async () => {
        const begun = await begin()
        return begun === 'busy' ? null : { begun }
      }
      const beginInTurn = async () => {
        const result = await poll(tryBegin, { pauseMs, timeoutMs: lockTimeoutMs })
        if (!result) throw new AppError('session_busy', errorTexts.sessionBusy, { retryAfterSeconds: 1 })
        return result.begun
      }
      const started = await poll(beginInTurn, { pauseMs: previousEndPollMs, timeoutMs: previousEndTimeoutMs })
      if (!started) throw previousResponseError(errorTexts.previousInProgress)
      if (started.backgroundRequest === undefined) running.addInserted(started)
      return started
    },
    finish: (response, json) => running.end({ response, json }),
    find: async (owner, id) => unseal(await findRow(owner, id)),
    async findInput(owner, id) {
      const { id: uuid, sealedInput } = await findRow(owner, id)
      if (sealedInput === null) throw responseNotFound()
      return rows.unsealInput(uuid, sealedInput)
    },
    async findConversation(owner, id, sessionKey) {
      const last = await findRow(owner, id).catch((error: unknown) => {
        throw error instanceof AppError && error.code === 'response_not_found' ? unknownPrevious() : error
      })
      if (sessionKey !== null && last.sessionKey !== sessionKey)
        throw previousResponseError(errorTexts.previousOfOtherSession)
      if (last.sealedObject === null) throw unknownPrevious()
      if (last.status === 'in_progress' && !last.isLost) throw previousResponseError(errorTexts.previousInProgress)
      const session = { ...owner, sessionKey: last.sessionKey }
      await running.written((response) => response.session === globalSessionKey(session))
      const turns: StoredTurn[] = []
      let size = 0
      for (const uuid of await findStoredTurns(db, session, last.id)) {
        const { sealedObject, sealedInput } = await findRow(owner, toResponseId(uuid))
        if (sealedObject === null) continue
        size += sealedObject.length + (sealedInput?.length ?? 0)
        if (size > maxConversationMebibytes * 1024 * 1024) {
          throw new AppError('too_large', errorTexts.conversationTooLarge(maxConversationMebibytes))
        }
        const input = sealedInput === null ? [] : rows.unsealInput(uuid, sealedInput)
        turns.push({ input, output: rows.unsealObject(uuid, sealedObject).output })
      }
      return turns
    },
    async cancel(owner, id) {
      const { status, sealedObject } = await findRow(owner, id)
      if (sealedObject === null) throw responseNotFound()
      if (status === 'cancelled') return
      const { rowCount } = await db
        .update(responses)
        .set({ status: 'cancelled' })
        .where(and(isOwned(owner, id), eq(responses.status, 'in_progress'), sql`NOT ${isLost}`))
      if (rowCount === 0) throw new AppError('response_ended', errorTexts.notInProgress)
      running.cancel(id)
    },
    async cancelOthers(session, id) {
      await running.written(({ session: of }) => of === globalSessionKey(session))
      const cancelled = await db
        .update(responses)
        .set({ status: 'cancelled' })
        .where(and(isInProgress(session), ne(responses.id, toUuid(id))))
        .returning({ id: responses.id })
      for (const other of cancelled) running.cancel(toResponseId(other.id))
    },
    async isBusy(session) {
      await running.written(({ session: of }) => of === globalSessionKey(session))
      const found = await db.select({ id: responses.id }).from(responses).where(isInProgress(session)).limit(1)
      return found.length > 0
    },
    async delete(owner, id) {
      const { status, sealedObject, isLost } = await findRow(owner, id)
      if (sealedObject === null) throw responseNotFound()
      if (status === 'in_progress' && !isLost) throw new AppError('response_in_progress', errorTexts.stillInProgress)
      // The row stays, because the agent remembers the turn: a conversation must not continue from an earlier one.
      await db.update(responses).set({ sealedObject: null, sealedInput: null }).where(isOwned(owner, id))
      await db.delete(responseEvents).where(eq(responseEvents.responseId, toUuid(id)))
    },
    close: running.close,
  }
}
