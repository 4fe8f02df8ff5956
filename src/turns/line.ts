import pTimeout from 'p-timeout'
import { batched } from '#database/batched.ts'
import type { Db } from '#database/client.ts'
import { isDatabaseDown } from '#database/outage.ts'
import { isProcessAlive } from '#database/processes.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { errorTexts } from './error-texts.ts'
import type { Turn } from './turn.ts'

/** Maximum turns of a session in line, including the running one. The clients of all of them are connected. */
export const maxTurnsInLine = 100
/** Longer than any turn, including its wait: lines not entered since then are empty or contain only lost turns. */
const staleAfter = `interval '1 hour'`

/** The session of a line. */
interface LineKey {
  instanceId: string
  sessionKey: string
}

/** The turns of a session in their order. The first one runs. */
interface Line extends LineKey {
  turns: string[]
}

/** A turn that enters or leaves a line. Null enters nothing: the line only drops its lost turns. */
interface Place extends LineKey {
  id: string | null
}

const keyOf = ({ instanceId, sessionKey }: LineKey): string => `${instanceId} ${sessionKey}`

/** Whether the process of a turn, an SQL expression, is alive. */
const isLive = (turn: string) => isProcessAlive(`split_part(${turn}, ' ', 1)::uuid`)

const columns = `instance_id AS "instanceId", session_key AS "sessionKey", line.turns`
const input = 'unnest($1::uuid[], $2::text[], $3::jsonb[]) AS x (instance, session, turns)'
const inputTurns = 'SELECT jsonb_array_elements_text(x.turns)'
const isOfLine = 'line.instance_id = x.instance AND line.session_key = x.session'

// The turns of this process, $4, always count.
const enterQuery = `
  INSERT INTO turn_lines AS line (instance_id, session_key, turns)
  SELECT x.instance, x.session, (ARRAY(${inputTurns}))[1:${maxTurnsInLine}] FROM ${input}
  ON CONFLICT (instance_id, session_key) DO UPDATE SET entered_at = now(), turns = (ARRAY(
    SELECT turn FROM unnest(line.turns) WITH ORDINALITY AS earlier (turn, number)
    WHERE starts_with(turn, $4::text) OR ${isLive('turn')} ORDER BY number) || excluded.turns)[1:${maxTurnsInLine}]
  RETURNING ${columns}`

const leaveQuery = `
  UPDATE turn_lines line SET turns = ARRAY(
    SELECT turn FROM unnest(line.turns) WITH ORDINALITY AS earlier (turn, number)
    WHERE turn NOT IN (${inputTurns}) ORDER BY number)
  FROM ${input} WHERE ${isOfLine} RETURNING ${columns}`

const readQuery = `
  SELECT ${columns}, NOT ${isLive('line.turns[1]')} AS "isLost"
  FROM turn_lines line JOIN unnest($1::uuid[], $2::text[]) AS x (instance, session) ON ${isOfLine}`

/** The values of `unnest`, a row for each line, in the order in which all processes lock the rows. */
function byLine(places: readonly Place[]): [string[], string[], string[]] {
  const lines = new Map<string, { key: LineKey; turns: string[] }>()
  for (const { id, ...key } of places) {
    const line = lines.get(keyOf(key)) ?? { key, turns: [] }
    if (id !== null) line.turns.push(id)
    lines.set(keyOf(key), line)
  }
  const sorted = [...lines].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, line]) => line)
  return [
    sorted.map(({ key }) => key.instanceId),
    sorted.map(({ key }) => key.sessionKey),
    sorted.map(({ turns }) => JSON.stringify(turns)),
  ]
}

/** The rows of lines, as one process reads and writes them. Concurrent calls share a statement. */
function createLineRows(db: Db, processId: string) {
  async function change(name: string, text: string, places: readonly Place[], ...more: string[]): Promise<string[][]> {
    const { rows } = await db.$client.query<Line>({ name, text, values: [...byLine(places), ...more] })
    const turns = new Map(rows.map((line) => [keyOf(line), line.turns]))
    return places.map((place) => turns.get(keyOf(place)) ?? [])
  }
  return {
    /** Adds a turn to the end of its line. The returned line lacks it when the line is full. */
    enter: batched(1, (places: readonly Place[]) => change('enter_lines', enterQuery, places, processId)),
    /** Removes a turn from its line, and returns the remaining turns. */
    leave: batched(1, (places: readonly Place[]) => change('leave_lines', leaveQuery, places)),
    /** Reads lines. `isLost`: the process of the first turn is dead. `enter` removes such turns. */
    read: async (keys: readonly LineKey[]) => {
      const values = [keys.map(({ instanceId }) => instanceId), keys.map(({ sessionKey }) => sessionKey)]
      const query = { name: 'read_lines', text: readQuery, values }
      return (await db.$client.query<Line & { isLost: boolean }>(query)).rows
    },
  }
}

/** Deletes lines that are empty, or contain only turns of dead processes. */
export async function deleteStaleLines(db: Db): Promise<void> {
  await db.$client.query(`DELETE FROM turn_lines WHERE entered_at < now() - ${staleAfter}`)
}

/** How often, in ms, the lines of waiting turns are polled for departures in other processes. */
const readEveryMs = 100
const readTimeoutMs = 5000
/** How long, in ms, turns wait while the database is unavailable. */
const maxOutageMs = 10_000
const rewriteEveryMs = 1000
const closeTimeoutMs = 2000
const fullRetryAfterSeconds = 5

/** The position of a turn in the line of its session. */
export interface PlaceInLine {
  /** Whether earlier turns of the session run or wait. */
  mustWait: boolean
  /**
   * Resolves when the turn is the first of its line. Rejects with the turn's reason when the turn is ended, and with
   * AppError unavailable after an outage of the database of 10 s.
   */
  begun: Promise<void>
  /** Allows the next turn to begin. Call it once the agent has ended this one, and after every failure. */
  leave(): void
}

/**
 * The turns of each session form one line over all processes, in the order of arrival: OpenClaw loses one of two turns
 * that create a session at the same time. The turns of a killed process leave their lines once the process counts as
 * dead.
 */
export interface TurnLines {
  /**
   * Adds a turn to its line. Throws AppError session_busy when the line is full, unavailable without the database, and
   * the turn's reason when the turn was ended.
   */
  enter(turn: Turn, session: LineKey): Promise<PlaceInLine>
  /** Writes the pending departures of this process, for up to 2 s. */
  close(): Promise<void>
}

interface Entry extends LineKey {
  id: string
  /** The last write of this turn into the row of its line. */
  write: Promise<unknown> | null
  begun: PromiseWithResolvers<void>
}

const unavailable = (cause?: unknown) =>
  new AppError('unavailable', texts.databaseDown, { cause, retryAfterSeconds: 1 })
const full = () =>
  new AppError('session_busy', errorTexts.lineFull(maxTurnsInLine), { retryAfterSeconds: fullRetryAfterSeconds })

/** The error of a turn that does not wait for the others of its session. */
export const sessionBusy = () => new AppError('session_busy', errorTexts.otherTurn, { retryAfterSeconds: 1 })

/** Rejects with the signal's reason once it is aborted. */
function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  const { promise: result, resolve, reject } = Promise.withResolvers<T>()
  const abort = () => reject(signal.reason)
  signal.addEventListener('abort', abort, { once: true })
  void promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort))
  return result
}

/** `processId` is the id of this process in the table `processes`. */
export function createTurnLines(db: Db, processId: string): TurnLines {
  const rows = createLineRows(db, processId)
  /** The waiting turns of this process, by id. */
  const waiting = new Map<string, Entry>()
  /** Turns whose departure must be written again, and departures that are being written. */
  const unwritten = new Set<Entry>()
  const leaves = new Set<Promise<void>>()
  let count = 0
  let readTimer: NodeJS.Timeout | undefined
  let isReading = false
  let readAt = 0

  /** Begins the first turn of a line if it waits in this process. */
  function beginFirst([first = '']: readonly string[]): void {
    const entry = waiting.get(first)
    if (entry && waiting.delete(first)) entry.begun.resolve()
  }

  function write(entry: Entry): Promise<string[]> {
    const written = rows.enter(entry)
    entry.write = written
    return written
  }

  async function writeLeave(entry: Entry): Promise<void> {
    unwritten.delete(entry)
    try {
      await entry.write?.catch(() => {})
      beginFirst(await rows.leave(entry))
    } catch {
      unwritten.add(entry)
    }
  }

  function leave(entry: Entry): void {
    waiting.delete(entry.id)
    const left = writeLeave(entry)
    leaves.add(left)
    void left.finally(() => leaves.delete(left))
  }

  async function readLines(): Promise<void> {
    const entries = [...waiting.values()]
    const keys = new Map(entries.map((entry) => [keyOf(entry), entry]))
    const found = await pTimeout(rows.read([...keys.values()]), { milliseconds: readTimeoutMs })
    readAt = performance.now()
    const lines = new Map(found.map((line) => [keyOf(line), line]))
    const changed = entries.map(async (entry) => {
      const line = lines.get(keyOf(entry))
      if (!waiting.has(entry.id)) return
      // Others considered this process dead, or PostgreSQL has crashed.
      if (!line?.turns.includes(entry.id)) beginFirst(await write(entry))
      else beginFirst(line.isLost ? await rows.enter({ ...entry, id: null }) : line.turns)
    })
    await Promise.all(changed)
  }

  async function readOrGiveUp(): Promise<void> {
    if (waiting.size === 0) {
      clearInterval(readTimer)
      readTimer = undefined
      return
    }
    if (isReading) return
    isReading = true
    try {
      await readLines()
    } catch (error) {
      if (performance.now() - readAt < maxOutageMs) return
      for (const { begun } of waiting.values()) begun.reject(unavailable(error))
      waiting.clear()
    } finally {
      isReading = false
    }
  }

  function wait(entry: Entry, signal: AbortSignal): void {
    waiting.set(entry.id, entry)
    signal.addEventListener('abort', () => entry.begun.reject(signal.reason), { once: true })
    entry.begun.promise.catch(() => {}) // may be rejected before its turn observes it
    if (readTimer) return
    readAt = performance.now()
    readTimer = setInterval(() => void readOrGiveUp(), readEveryMs).unref()
  }

  const rewriteTimer = setInterval(() => {
    for (const entry of unwritten) void writeLeave(entry)
  }, rewriteEveryMs).unref()

  return {
    async enter(turn, { instanceId, sessionKey }) {
      turn.signal.throwIfAborted()
      count += 1
      const id = `${processId} ${count}`
      const entry: Entry = { id, instanceId, sessionKey, write: null, begun: Promise.withResolvers() }
      try {
        const turns = await unlessAborted(write(entry), turn.signal)
        if (!turns.includes(id)) throw full()
        const mustWait = turns[0] !== id
        if (mustWait) wait(entry, turn.signal)
        else entry.begun.resolve()
        return { mustWait, begun: entry.begun.promise, leave: () => leave(entry) }
      } catch (error) {
        leave(entry)
        throw isDatabaseDown(error) ? unavailable(error) : error
      }
    },
    async close() {
      clearInterval(rewriteTimer)
      clearInterval(readTimer)
      await pTimeout(Promise.all(leaves), { milliseconds: closeTimeoutMs, message: false }).catch(() => {})
    },
  }
}
