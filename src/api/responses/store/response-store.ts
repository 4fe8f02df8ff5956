import { and, eq, sql } from 'drizzle-orm'
import { errorTexts } from '#api/responses/format/error-texts.ts'
import type { KnownItems } from '#api/responses/format/known-items.ts'
import type { ResponseObject } from '#api/responses/format/response-schema.ts'
import type { Db } from '#database/client.ts'
import { type ResponseStatus, responses } from '#database/schema.ts'
import { atMost } from '#platform/deadline.ts'
import { AppError } from '#platform/errors.ts'
import type { Logger } from '#platform/log.ts'
import type { Vault } from '#platform/secrets.ts'
import { texts } from '#platform/texts.ts'
import { isLost, isResponseId, toResponseId, toUuid } from './lost-turns.ts'
import { createResponseRows, type EndedResponse, type StartedResponse } from './response-rows.ts'
import { createRetriedWrites } from './retried-writes.ts'
import {
  findKnownItems,
  previousResponseError,
  type References,
  requireLatestResponse,
  type SessionRef,
} from './session-history.ts'

const seenEveryMs = 2000
const seenAgainAfterSeconds = 10
/** For what another process is about to write. */
const settleMs = 1000
const settlePauseMs = 25
/** Of a reader, for what this process writes: until a database that is back is tried again. */
const readWithinMs = 10_000
/** A turn takes longer, and what takes less is written once, with others. */
const beginAfterMs = 10

export interface ResponseStore {
  /**
   * Writes down that a turn begins, in a moment: one that is over by then is written once, as it ended. Nothing is kept of
   * an instance that is terminated meanwhile.
   */
  begin(begun: StartedResponse): void
  /**
   * The same for a turn that builds on earlier ones: `prepare` gets what the session knows of the items and calls that
   * were named, and answers what to write down. Nothing else that builds on them is let in between. Throws AppError
   * invalid when `previousId` is not the session's latest, and what `prepare` throws.
   */
  beginContinuation<T extends StartedResponse>(
    place: SessionRef,
    named: References,
    prepare: (known: KnownItems) => T,
  ): Promise<T>
  /**
   * Writes down how a turn ended, with the JSON of its response. Returns at once, and tries again for minutes while the
   * database is away; whoever reads waits for it, and after some seconds is told that the database is not available.
   */
  finish(response: ResponseObject, json: string): void
  /** The response as it stands. Throws AppError not_found. */
  find(owner: Owner, id: string): Promise<ResponseObject>
  /** Its input items, in their order. Throws AppError not_found. */
  findInput(owner: Owner, id: string): Promise<object[]>
  /** Marks one that is in progress, wherever it is worked on. Throws AppError not_found, or conflict when it has ended. */
  cancel(owner: Owner, id: string): Promise<void>
  /** Throws AppError not_found, or conflict while it is in progress. */
  delete(owner: Owner, id: string): Promise<void>
  /** Calls `end` when the turn is cancelled in another process; until it is finished. */
  onCancelled(id: string, end: () => void): void
  /** Writes down what waits to be, within some seconds. */
  close(): Promise<void>
}

interface Owner {
  organizationId: string
  instanceId: string
}

const notFound = () => new AppError('not_found', errorTexts.responseNotFound)

interface Row {
  id: string
  status: ResponseStatus
  sealedObject: string | null
  sealedInput: string | null
  isLost: boolean
}

interface Open {
  id: string
  session: string
  /** Whether its row is there. */
  isWritten: boolean
  /** Null once its end waits to be written down. */
  begun: StartedResponse | null
  /** How it ended, once it has. */
  ended: EndedResponse | null
  /** What to do when it is cancelled. */
  end(): void
}

/** Responses in the database, their contents sealed. */
export function createResponseStore(db: Db, vault: Vault, log: Pick<Logger, 'warn'>): ResponseStore {
  const rows = createResponseRows(db, vault)
  const writes = createRetriedWrites()
  /** Turns of this process that are not written down as ended. */
  const open = new Map<string, Open>()
  /** Of those, the ones whose beginning is yet to be written down. */
  const pending = new Set<Open>()
  /** Writes that are under way, by response: whoever reads waits for them. */
  const writing = new Map<string, Promise<void>>()
  const sessionOf = ({ instanceId, sessionKey }: SessionRef) => `${instanceId} ${sessionKey}`

  /** Whoever reads waits for it. */
  function track({ id }: Open, done: Promise<void>): void {
    const tracked = done.finally(() => {
      if (writing.get(id) === tracked) writing.delete(id)
    })
    writing.set(id, tracked)
  }

  /** Writes down the beginnings that wait, with the end where there is one. One that fails is made up for with its end. */
  let flushing: NodeJS.Timeout | undefined
  function flush(): void {
    clearTimeout(flushing)
    flushing = undefined
    for (const turn of pending) track(turn, turn.ended ? conclude(turn, turn.ended) : beginWith(turn))
    pending.clear()
  }
  function opens(begun: StartedResponse, isWritten: boolean): Open {
    const turn: Open = { id: begun.id, session: sessionOf(begun), isWritten, begun, ended: null, end: () => {} }
    open.set(begun.id, turn)
    return turn
  }

  async function beginWith(turn: Open): Promise<void> {
    try {
      await rows.insertOne(rows.toInsert(turn.begun!))
      turn.isWritten = true
    } catch {}
  }

  // Not async: while the database is away, of a turn nothing but its row is to be held.
  function conclude(turn: Open, ended: EndedResponse): Promise<void> {
    const giveUp = (error: unknown) => log.warn({ err: error }, 'how a turn ended could not be written down')
    const over = () => void open.delete(turn.id)
    try {
      const row = turn.isWritten ? rows.toFinish(ended) : rows.toInsert(turn.begun!, ended)
      turn.begun = turn.ended = null
      turn.end = () => {}
      return writes
        .untilWritten(row, turn.isWritten ? rows.finishOne : rows.insertOne)
        .catch(giveUp)
        .then(over)
    } catch (error) {
      giveUp(error)
      return Promise.resolve(over())
    }
  }

  /** One look for all turns of this process: says that they go on, and learns which of them were cancelled. */
  async function look(): Promise<void> {
    const ids = [...open.values()].flatMap(({ id, isWritten }) => (isWritten ? [toUuid(id)] : []))
    if (ids.length === 0) return
    const { rows: cancelled } = await db.$client.query<{ id: string }>({
      name: 'see_responses',
      text: `WITH seen AS (UPDATE responses SET seen_at = now() WHERE id = ANY($1::uuid[]) AND status = 'in_progress'
               AND seen_at < now() - interval '${seenAgainAfterSeconds} seconds')
             SELECT id FROM responses WHERE id = ANY($1::uuid[]) AND status = 'cancelled'`,
      values: [ids],
    })
    for (const { id } of cancelled) open.get(toResponseId(id))?.end()
  }
  const looking = setInterval(() => void look().catch(() => {}), seenEveryMs).unref()

  /** What is about to be written of some of this process's turns is written. Throws AppError unavailable when it is not soon. */
  async function settled(isMeant: (turn: Open) => boolean): Promise<void> {
    if ([...pending].some(isMeant)) flush()
    const written = [...open.values()].flatMap((turn) => (isMeant(turn) ? (writing.get(turn.id) ?? []) : []))
    if (written.length === 0) return
    let isDone = false
    await atMost(
      readWithinMs,
      Promise.all(written).then(() => {
        isDone = true
      }),
    )
    if (!isDone) throw new AppError('unavailable', texts.databaseDown, { retryAfterSeconds: 1 })
  }

  async function row({ organizationId, instanceId }: Owner, id: string): Promise<Row> {
    if (!isResponseId(id)) throw notFound()
    await settled((turn) => turn.id === id)
    const [found] = await db
      .select({
        id: responses.id,
        status: responses.status,
        sealedObject: responses.sealedObject,
        sealedInput: responses.sealedInput,
        isLost: sql<boolean>`${isLost}`,
      })
      .from(responses)
      .where(owned({ organizationId, instanceId }, id))
    if (!found) throw notFound()
    return found
  }
  const owned = ({ organizationId, instanceId }: Owner, id: string) =>
    and(
      eq(responses.id, toUuid(id)),
      eq(responses.organizationId, organizationId),
      eq(responses.instanceId, instanceId),
    )

  /** The object was sealed by whoever worked on it; that it was cancelled, or lost, may be news. */
  function opened({ id, status, sealedObject, isLost }: Row): ResponseObject {
    if (sealedObject === null) throw notFound()
    const object = rows.unsealObject(id, sealedObject)
    if (isLost || (status === 'failed' && object.status === 'in_progress')) {
      return { ...object, status: 'failed', error: { code: 'lost', message: errorTexts.lost } }
    }
    if (status !== 'cancelled') return object
    return { ...object, status, completed_at: null, error: null, incomplete_details: { reason: 'cancelled' } }
  }

  return {
    begin(begun) {
      pending.add(opens(begun, false))
      flushing ??= setTimeout(flush, beginAfterMs)
    },
    async beginContinuation(place, named, prepare) {
      const { previousId } = named
      const session = sessionOf(place)
      await settled((turn) => turn.session === session || turn.id === previousId)
      const deadline = performance.now() + settleMs
      for (;;) {
        const begun = await db.transaction(async (tx) => {
          // No two turns may both be the next one after the same.
          await tx.$client.query('SELECT pg_advisory_xact_lock(hashtextextended($1, 0))', [session])
          if (previousId !== null && (await requireLatestResponse(tx, place, previousId)) === 'unsettled') return null
          const prepared = prepare(await findKnownItems(tx, place, named))
          await rows.insert(tx, [rows.toInsert(prepared)])
          return prepared
        })
        if (begun) {
          opens(begun, true)
          return begun
        }
        // Its answer may be out already, and what it came to about to be written by another process.
        if (performance.now() > deadline) throw previousResponseError(errorTexts.previousInProgress)
        await new Promise((resolve) => setTimeout(resolve, settlePauseMs))
      }
    },
    finish(response, json) {
      const turn = open.get(response.id)
      if (!turn) return
      const ended = { response, json }
      turn.ended = ended
      if (pending.has(turn)) return
      const begun = writing.get(response.id) ?? Promise.resolve()
      track(
        turn,
        begun.then(() => conclude(turn, ended)),
      )
    },
    onCancelled(id, end) {
      const turn = open.get(id)
      if (turn) turn.end = end
    },
    async find(owner, id) {
      return opened(await row(owner, id))
    },
    async findInput(owner, id) {
      const found = await row(owner, id)
      if (found.sealedInput === null) throw notFound()
      return rows.unsealInput(found.id, found.sealedInput)
    },
    async cancel(owner, id) {
      const { status, sealedObject } = await row(owner, id)
      if (sealedObject === null) throw notFound()
      if (status === 'cancelled') return
      const { rowCount } = await db
        .update(responses)
        .set({ status: 'cancelled' })
        .where(and(owned(owner, id), eq(responses.status, 'in_progress'), sql`NOT ${isLost}`))
      if (rowCount === 0) throw new AppError('conflict', errorTexts.notInProgress)
      open.get(id)?.end()
    },
    async delete(owner, id) {
      const { status, sealedObject, isLost } = await row(owner, id)
      if (sealedObject === null) throw notFound()
      if (status === 'in_progress' && !isLost) throw new AppError('conflict', errorTexts.stillInProgress)
      // The agent remembers the turn: its row stays, so that nobody goes on from the one before.
      await db.update(responses).set({ sealedObject: null, sealedInput: null }).where(owned(owner, id))
    },
    async close() {
      clearInterval(looking)
      const closeWithinMs = writes.close()
      flush()
      await atMost(closeWithinMs, Promise.all(writing.values()))
    },
  }
}
