import type { LineRows } from './line-rows.ts'

/** How often, in ms, a process reports itself, and learns which others there are. */
const reportEveryMs = 1000
/** The same, while another process has not shared its lines yet. */
const awaitOthersMs = 100
/**
 * How long, in ms, what a process has learned holds. Shorter than the time after which others take it for lost: they
 * rely on what it last reported.
 */
const holdsForMs = 3000
/** How long, in ms, no other process must have been seen: all that others had learned has then ended. */
const aloneAfterMs = 5000

/** What this process knows of others: it is alone, or all of them share lines through the database. */
export type Knowledge = 'alone' | 'shared'

interface Options {
  rows: LineRows
  /** Writes the turns that this process has in line by itself. Called before others may rely on the rows. */
  share(): Promise<void>
  /** Called when no other process is left. */
  beAlone(): void
}

/**
 * Finds out whether this process is the only one that runs turns, so that its lines need no statement. Each process
 * reads the reports of others after its own was committed. So one that begins sees that another one is alone, and runs
 * no turn until that one has shared its lines, or has been lost for longer than what it had learned holds. The other
 * one sees it with its next report.
 */
export function createProcessWatch({ rows, share, beAlone }: Options) {
  /** What this process has reported last; null before its first report. */
  let reported: Knowledge | null = null
  let next: Knowledge = 'shared'
  let known: Knowledge = 'shared'
  let holdsUntil = 0
  /** When no other process was seen for the first time since one was. */
  let quietSince: number | null = null
  let learned = Promise.withResolvers<void>()
  let timer: NodeJS.Timeout | undefined
  let isClosed = false

  function learn(knowledge: Knowledge, at: number): void {
    known = knowledge
    holdsUntil = at + holdsForMs
    learned.resolve()
    learned = Promise.withResolvers()
  }

  /** Reports once. Returns the pause, in ms, before the next report. */
  async function report(): Promise<number> {
    const [before, now, at] = [reported, next, performance.now()]
    reported = null // unknown, if the answer is lost
    const others = await rows.report(now)
    reported = now
    if (before === null) return 0
    if (others.length === 0) {
      quietSince ??= at
      if (at - quietSince >= aloneAfterMs) next = 'alone'
      const isAlone = before === 'alone' && now === 'alone'
      if (isAlone && known === 'shared') beAlone()
      learn(isAlone ? 'alone' : known, at)
      return next === now ? reportEveryMs : 0
    }
    quietSince = null
    if (known === 'alone') {
      holdsUntil = 0
      await share()
      known = 'shared'
    }
    next = 'shared'
    const allShare = others.every((other) => other === 'shared')
    if (allShare) learn('shared', at)
    if (now === 'alone') return 0
    return allShare ? reportEveryMs : awaitOthersMs
  }

  let reporting: Promise<void> | undefined
  async function reportAlways(): Promise<void> {
    // After a failure, what was learned holds for a while.
    const pauseMs = await report().catch(() => reportEveryMs)
    if (!isClosed) timer = setTimeout(start, pauseMs).unref()
  }
  function start(): void {
    reporting = reportAlways()
  }

  return {
    start,
    /** What holds now; null when nothing is known. */
    knowledge: (): Knowledge | null => (performance.now() < holdsUntil ? known : null),
    /** Resolves when something is known again. */
    learned: (): Promise<void> => learned.promise,
    /** Resolves when no report is being written any more. */
    async close(): Promise<void> {
      isClosed = true
      clearTimeout(timer)
      await reporting
    },
  }
}
