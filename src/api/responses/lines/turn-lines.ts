import pTimeout from 'p-timeout'
import { errorTexts } from '#api/responses/format/error-texts.ts'
import type { Turn } from '#api/responses/turns/turn.ts'
import type { Db } from '#database/client.ts'
import { isDatabaseDown } from '#database/outage.ts'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'
import { createLineRows, keyOf, type LineKey, maxTurnsInLine } from './line-rows.ts'
import { createProcessWatch } from './processes.ts'

/** How often, in ms, waiting turns look whether turns of other processes have left. */
const lookEveryMs = 100
const lookTimeoutMs = 5000
/** How long turns wait while the database is not available. */
const maxOutageMs = 10_000
/** How long, in ms, a turn waits until it is known which other processes there are. */
const learnTimeoutMs = 6000
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
 * turns that create a session at the same time. The turns of a process that is killed leave their lines within 6 s.
 */
export interface TurnLines {
  /** Begins to report this process to others. A turn that enters before waits for that. */
  open(): void
  /**
   * Puts a turn in line. Throws AppError session_busy when the line is full, database_unavailable without the database,
   * and the turn's reason when the turn was ended. It needs no statement while this process is the only one.
   */
  enter(turn: Turn, session: LineKey): Promise<PlaceInLine>
  /** Takes the turns of this process out of their lines. */
  close(): Promise<void>
}

interface Entry extends LineKey {
  id: string
  /** The latest write of it into the row of its line, and whether one has succeeded. Null while no other can see it. */
  write: Promise<unknown> | null
  isShared: boolean
  begun: PromiseWithResolvers<void>
}

const unavailable = (cause?: unknown) =>
  new AppError('database_unavailable', texts.databaseDown, { cause, retryAfterSeconds: 1 })

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
  /** The turns of this process that are in a line, by id and by line. */
  const entries = new Map<string, Entry>()
  const lines = new Map<string, Entry[]>()
  const waiting = new Set<Entry>()
  /** Turns whose leave could not be written yet, and the writes of leaves. */
  const unwritten = new Set<Entry>()
  const leaves = new Set<Promise<void>>()
  let count = 0
  let lookTimer: NodeJS.Timeout | undefined
  let isLooking = false
  let lookedAt = 0

  const processes = createProcessWatch({
    rows,
    async share() {
      await Promise.all([...entries.values()].filter(({ isShared }) => !isShared).map(write))
    },
    beAlone: () => {
      for (const entry of waiting) beginOwn(keyOf(entry))
    },
  })

  /** Begins a turn if it waits. */
  function begin(entry: Entry | undefined): void {
    if (entry && waiting.delete(entry)) entry.begun.resolve()
  }
  const beginFirst = ([first = '']: readonly string[]): void => begin(entries.get(first))
  const beginOwn = (line: string): void => begin(lines.get(line)?.[0])

  async function write(entry: Entry): Promise<string[]> {
    const written = rows.enter(entry)
    entry.write = written
    const turns = await written
    entry.isShared = true
    return turns
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
    if (!entries.delete(entry.id)) return
    waiting.delete(entry)
    const key = keyOf(entry)
    const others = (lines.get(key) ?? []).filter((other) => other !== entry)
    if (others.length === 0) lines.delete(key)
    else lines.set(key, others)
    if (processes.knowledge() === 'alone') beginOwn(key)
    if (entry.write === null) return
    const left = writeLeave(entry)
    leaves.add(left)
    void left.finally(() => leaves.delete(left))
  }

  /** Finds out what other processes have changed. */
  async function look(): Promise<void> {
    const looking = [...waiting]
    const knowledge = processes.knowledge()
    if (knowledge === null) throw unavailable()
    if (knowledge === 'alone') {
      for (const entry of looking) beginOwn(keyOf(entry))
      lookedAt = performance.now()
      return
    }
    const keys = new Map(looking.map((entry) => [keyOf(entry), entry]))
    const found = await pTimeout(rows.look([...keys.values()]), { milliseconds: lookTimeoutMs })
    lookedAt = performance.now()
    const byKey = new Map(found.map((line) => [keyOf(line), line]))
    const changed = looking.map(async (entry) => {
      const line = byKey.get(keyOf(entry))
      if (!waiting.has(entry)) return
      // Others took this process for lost, or PostgreSQL has crashed.
      if (!line?.turns.includes(entry.id)) beginFirst(await write(entry))
      else beginFirst(line.isLost ? await rows.enter({ ...entry, id: null }) : line.turns)
    })
    await Promise.all(changed)
  }

  async function lookOrGiveUp(): Promise<void> {
    if (waiting.size === 0) {
      clearInterval(lookTimer)
      lookTimer = undefined
      return
    }
    if (isLooking) return
    isLooking = true
    try {
      await look()
    } catch (error) {
      if (performance.now() - lookedAt < maxOutageMs) return
      for (const { begun } of waiting) begun.reject(unavailable(error))
      waiting.clear()
    } finally {
      isLooking = false
    }
  }

  function wait(entry: Entry, signal: AbortSignal): void {
    waiting.add(entry)
    signal.addEventListener('abort', () => entry.begun.reject(signal.reason), { once: true })
    entry.begun.promise.catch(() => {}) // may be rejected before its turn observes it
    if (lookTimer) return
    lookedAt = performance.now()
    lookTimer = setInterval(() => void lookOrGiveUp(), lookEveryMs).unref()
  }

  const rewriteTimer = setInterval(() => {
    for (const entry of unwritten) void writeLeave(entry)
  }, rewriteEveryMs).unref()

  /** Puts a turn in line, and returns whether it is the first one. Throws AppError session_busy when the line is full. */
  async function isFirst(entry: Entry, signal: AbortSignal): Promise<boolean> {
    let knowledge = processes.knowledge()
    while (knowledge === null) {
      const learned = pTimeout(processes.learned(), { milliseconds: learnTimeoutMs, message: unavailable() })
      await unlessAborted(learned, signal)
      knowledge = processes.knowledge()
    }
    const key = keyOf(entry)
    const line = lines.get(key) ?? []
    if (line.length >= maxTurnsInLine) throw full()
    entries.set(entry.id, entry)
    lines.set(key, [...line, entry])
    if (knowledge === 'alone') return line.length === 0
    const turns = await unlessAborted(write(entry), signal)
    if (!turns.includes(entry.id)) throw full()
    return turns[0] === entry.id
  }

  return {
    open: processes.start,
    async enter(turn, { instanceId, sessionKey }) {
      turn.signal.throwIfAborted()
      count += 1
      const id = `${processId} ${count}`
      const entry: Entry = { id, instanceId, sessionKey, write: null, isShared: false, begun: Promise.withResolvers() }
      try {
        const mustWait = !(await isFirst(entry, turn.signal))
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
      clearInterval(lookTimer)
      const ended = Promise.all([processes.close(), ...leaves]).then(() => rows.end())
      await pTimeout(ended, { milliseconds: closeTimeoutMs, message: false }).catch(() => {})
    },
  }
}

const full = () =>
  new AppError('session_busy', errorTexts.lineFull(maxTurnsInLine), { retryAfterSeconds: fullRetryAfterSeconds })
