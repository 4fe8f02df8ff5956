import pTimeout from 'p-timeout'
import { toResponseId, toUuid } from '#api/responses/format/response-writer.ts'
import type { Db } from '#database/client.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import type { Logger } from '#platform/log.ts'
import type { TurnSession } from '#turns/admit.ts'
import { type Turn, turnCancelled } from '#turns/turn.ts'
import type { Columns, EndedResponse, ResponseRows, StartedResponse } from './response-rows.ts'

/** The pauses between attempts of a write. The last one repeats. */
const pausesMs = [100, 500, 2000] as const
const maxPauseMs = 5000
/** How long a row waits for an unavailable database, and how many rows and characters may wait. */
const retryForMs = 5 * 60_000
const maxWaitingRows = 10_000
const maxWaitingCharacters = 64 * 1024 * 1024
/** How long rows wait after the store was closed. */
const closeWithinMs = 5000

interface RetriedWrites {
  /**
   * Writes a row, and retries while that fails. Throws the error of the last attempt: 5 minutes after the first one, at
   * the next failure while more than 10,000 rows or 64 Mi characters wait, and soon after `close`.
   */
  untilWritten(row: Columns, write: (row: Columns) => Promise<void>): Promise<void>
  /** Writes all waiting rows at once. Returns the time, in ms, for which they are still retried. */
  close(): number
}

/** Keeps rows in memory while the database is unavailable. A process that ends loses them. */
function createRetriedWrites(): RetriedWrites {
  const waiting = { rows: 0, characters: 0 }
  let closesAt = Number.POSITIVE_INFINITY
  const endPauses = new Set<() => void>()
  const pause = (ms: number) =>
    new Promise<void>((resolve) => {
      const end = () => {
        clearTimeout(timer)
        endPauses.delete(end)
        resolve()
      }
      const timer = setTimeout(end, ms)
      endPauses.add(end)
    })

  return {
    async untilWritten(row, write) {
      const characters = row.reduce((sum, text) => sum + (text?.length ?? 0), 0)
      const givesUpAt = performance.now() + retryForMs
      waiting.rows += 1
      waiting.characters += characters
      try {
        for (let failures = 0; ; failures += 1) {
          try {
            return await write(row)
          } catch (error) {
            const pauseMs = pausesMs[failures] ?? maxPauseMs
            const isTooMuch = waiting.rows > maxWaitingRows || waiting.characters > maxWaitingCharacters
            if (isTooMuch || performance.now() + pauseMs > Math.min(givesUpAt, closesAt)) throw error
            await pause(pauseMs)
          }
        }
      } finally {
        waiting.rows -= 1
        waiting.characters -= characters
      }
    },
    close() {
      closesAt = performance.now() + closeWithinMs
      for (const end of endPauses) end()
      return closeWithinMs
    },
  }
}

/** How long a reader waits for the writes of this process: longer than the pauses of a retried write. */
const readTimeoutMs = 10_000
/** How often, in ms, a process checks which of its responses were cancelled by another one. */
const readCancelledEveryMs = 2000
/** A turn that ends within this time is written once, with its end. */
const insertAfterMs = 10

interface Entry {
  id: string
  session: string
  /** Set until its row is in the database. */
  notInserted: StartedResponse | null
  /** Set from its end until the end is being written. */
  ended: EndedResponse | null
  /** Null once its end is being written: it can no longer be cancelled. */
  turn: Pick<Turn, 'end'> | null
}

/** A unique key of a session among all instances. */
export const globalSessionKey = ({ instanceId, sessionKey }: Pick<TurnSession, 'instanceId' | 'sessionKey'>): string =>
  `${instanceId} ${sessionKey}`

/**
 * The responses of this process whose end is not in the database yet. Writes the beginning and the end of each turn in
 * the background, and retries while the database is unavailable.
 */
export function createRunningResponses(db: Db, rows: ResponseRows, log: Pick<Logger, 'warn'>) {
  const retriedWrites = createRetriedWrites()
  const running = new Map<string, Entry>()
  /** The running responses whose beginning is not written yet. */
  const toInsert = new Set<Entry>()
  /** The open writes, by the id of the response. Readers wait for them. */
  const writes = new Map<string, Promise<void>>()
  let insertTimer: NodeJS.Timeout | undefined

  function track({ id }: Entry, write: Promise<void>): void {
    const tracked = write.finally(() => {
      if (writes.get(id) === tracked) writes.delete(id)
    })
    writes.set(id, tracked)
  }

  function insertWaiting(): void {
    clearTimeout(insertTimer)
    insertTimer = undefined
    for (const response of toInsert) {
      track(response, response.ended ? writeEnd(response, response.ended) : insert(response))
    }
    toInsert.clear()
  }

  async function insert(response: Entry): Promise<void> {
    if (!response.notInserted) return
    try {
      await rows.insertOne(rows.toInsert(response.notInserted))
      response.notInserted = null
    } catch {
      // The end of the turn inserts the row.
    }
  }

  // Not async: while the database is unavailable, this must hold no memory of the response but its row.
  function writeEnd(response: Entry, ended: EndedResponse): Promise<void> {
    const giveUp = (err: unknown) => log.warn({ err }, 'the end of a turn could not be written to the database')
    const forget = () => void running.delete(response.id)
    const { notInserted } = response
    try {
      const row = notInserted ? rows.toInsert(notInserted, ended) : rows.toEnd(ended)
      response.notInserted = response.ended = null
      response.turn = null
      return retriedWrites
        .untilWritten(row, notInserted ? rows.insertOne : rows.endOne)
        .catch(giveUp)
        .then(forget)
    } catch (error) {
      giveUp(error)
      return Promise.resolve(forget())
    }
  }

  const cancel = (id: string): void => running.get(id)?.turn?.end(turnCancelled)

  /** Ends the turns whose responses were cancelled in another process. */
  async function endCancelled(): Promise<void> {
    const ids = [...running.values()].flatMap(({ id, notInserted }) => (notInserted ? [] : [toUuid(id)]))
    if (ids.length === 0) return
    const { rows: cancelled } = await db.$client.query<{ id: string }>({
      name: 'cancelled_responses',
      text: `SELECT id FROM responses WHERE id = ANY($1::uuid[]) AND status = 'cancelled'`,
      values: [ids],
    })
    for (const { id } of cancelled) cancel(toResponseId(id))
  }
  const cancelledTimer = setInterval(() => void endCancelled().catch(() => {}), readCancelledEveryMs).unref()

  function add(started: StartedResponse, isInserted: boolean): Entry {
    const response: Entry = {
      id: started.id,
      session: globalSessionKey(started),
      notInserted: isInserted ? null : started,
      ended: null,
      turn: started.turn ?? null,
    }
    running.set(started.id, response)
    return response
  }

  return {
    /** Ends the turn of a response, if it runs in this process. */
    cancel,
    /** Adds a response whose row is in the database. */
    addInserted: (started: StartedResponse) => void add(started, true),
    /** Adds a response and writes its row after a short delay. */
    begin(started: StartedResponse): void {
      toInsert.add(add(started, false))
      insertTimer ??= setTimeout(insertWaiting, insertAfterMs)
    },
    /** Writes the end of a turn in the background. */
    end(ended: EndedResponse): void {
      const response = running.get(ended.response.id)
      if (!response) return
      response.ended = ended
      if (toInsert.has(response)) return
      const earlierWrite = writes.get(response.id) ?? Promise.resolve()
      track(
        response,
        earlierWrite.then(() => writeEnd(response, ended)),
      )
    },
    /**
     * Resolves when all changes so far of the selected responses are in the database. Throws AppError unavailable when
     * that takes longer than some seconds.
     */
    async written(isSelected: (response: Entry) => boolean): Promise<void> {
      if ([...toInsert].some(isSelected)) insertWaiting()
      const selected = [...running.values()].flatMap((response) =>
        isSelected(response) ? (writes.get(response.id) ?? []) : [],
      )
      if (selected.length === 0) return
      const fallback = () => {
        throw new AppError('unavailable', texts.databaseDown, { retryAfterSeconds: 1 })
      }
      await pTimeout(Promise.all(selected), { milliseconds: readTimeoutMs, fallback })
    },
    async close(): Promise<void> {
      clearInterval(cancelledTimer)
      const closeWithinMs = retriedWrites.close()
      insertWaiting()
      await pTimeout(Promise.all(writes.values()), { milliseconds: closeWithinMs, message: false })
    },
  }
}
