import pTimeout from 'p-timeout'
import type { Db } from '#database/client.ts'
import { isDatabaseDown } from '#database/outage.ts'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'
import { errorTexts } from './error-texts.ts'
import { createLineRows, keyOf, type LineKey, maxTurnsInLine } from './line-rows.ts'
import type { Turn } from './turn.ts'

/** How often, in ms, the lines of waiting turns are read, to see whether turns of other processes have left. */
const readEveryMs = 100
const readTimeoutMs = 5000
/** How long, in ms, turns wait while the database is not available. */
const maxOutageMs = 10_000
const rewriteEveryMs = 1000
const closeTimeoutMs = 2000
const fullRetryAfterSeconds = 5

/** The place of a turn in the line of its session. */
export interface PlaceInLine {
  /** Whether earlier turns of the session run or wait. */
  mustWait: boolean
  /**
   * Resolves when the turn is the first of its line. Rejects with the turn's reason when the turn is ended, and with
   * AppError database_unavailable when the database is away for 10 s.
   */
  begun: Promise<void>
  /** Lets the next turn begin. Call it once the agent has ended this one, and after every failure. */
  leave(): void
}

/**
 * The turns of each session are one line over all processes, in the order in which they came: OpenClaw loses one of two
 * turns that create a session at the same time. The turns of a process that is killed leave their lines once the process
 * counts as dead.
 */
export interface TurnLines {
  /**
   * Puts a turn in line. Throws AppError session_busy when the line is full, database_unavailable without the database,
   * and the turn's reason when the turn was ended.
   */
  enter(turn: Turn, session: LineKey): Promise<PlaceInLine>
  /** Writes the leaves of this process that are still unwritten, for up to 2 s. */
  close(): Promise<void>
}

interface Entry extends LineKey {
  id: string
  /** The latest write of it into the row of its line. */
  write: Promise<unknown> | null
  begun: PromiseWithResolvers<void>
}

const unavailable = (cause?: unknown) =>
  new AppError('database_unavailable', texts.databaseDown, { cause, retryAfterSeconds: 1 })
const full = () =>
  new AppError('session_busy', errorTexts.lineFull(maxTurnsInLine), { retryAfterSeconds: fullRetryAfterSeconds })

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
  /** Turns whose leave is still to be written again, and the leaves that are being written. */
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
      // Others took this process for dead, or PostgreSQL has crashed.
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
