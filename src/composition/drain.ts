import pTimeout from 'p-timeout'
import { StartupError } from '#errors/startup-error.ts'
import type { Logger } from '#platform/log.ts'

/** After this time, in ms, plus that of turns, the process exits even if its drain is unfinished. */
export const drainTimeoutMs = 120_000

/**
 * The phases of a drain in order, with the deadline of each in ms, without the operator's time for turns. They add up
 * to `drainTimeoutMs` at most: a starting process has no worker yet.
 */
export const drainPhases = {
  start: 30_000,
  metrics: 1000,
  worker: 31_000,
  api: 14_000,
  relay: 2000,
  agents: 21_000,
  queue: 10_000,
  connections: 5000,
  postgres: 36_000,
} as const

export type DrainPhase = keyof typeof drainPhases

/** The cause of the process's end. */
interface DrainReason {
  /** By SIGINT: agents that are processes of this host stop as well. */
  interrupted: boolean
}

type Close = (reason: DrainReason) => unknown

/** Closes the opened parts of a process in order. */
export interface Drain {
  /** Aborted when the drain begins, so that a start gives up. */
  readonly signal: AbortSignal
  /**
   * Calls `close` in a phase, the last added first, or at once if the phase is over. Returns a function that removes
   * it.
   */
  add(phase: DrainPhase, close: Close): () => void
  /**
   * Runs the phases one after another. A `close` that fails, or a phase that exceeds its deadline, is logged; the
   * others still run. A second call returns the promise of the first.
   */
  run(reason: DrainReason): Promise<void>
}

export function createDrain(
  log: Pick<Logger, 'info' | 'warn'>,
  deadlines: Readonly<Record<DrainPhase, number>> = drainPhases,
): Drain {
  const beginning = new AbortController()
  const closes = new Map((Object.keys(deadlines) as DrainPhase[]).map((phase) => [phase, new Set<Close>()]))
  const over = new Map<DrainPhase, DrainReason>()
  let running: Promise<void> | undefined

  async function closeAll(phase: DrainPhase, left: Set<Close>, reason: DrainReason): Promise<void> {
    for (let close = [...left].at(-1); close; close = [...left].at(-1)) {
      left.delete(close)
      try {
        await close(reason)
      } catch (error) {
        log.warn({ err: error, phase }, `drain: ${phase} failed`)
      }
    }
  }

  async function runPhases(reason: DrainReason): Promise<void> {
    beginning.abort(new StartupError('Chowder was stopped while it started.'))
    for (const [phase, left] of closes) {
      if (left.size > 0) {
        log.info({ phase }, `drain: ${phase}`)
        const milliseconds = deadlines[phase]
        const isLate = () => log.warn({ phase }, `drain: ${phase} takes longer than ${milliseconds} ms`)
        await pTimeout(closeAll(phase, left, reason), { milliseconds, fallback: isLate })
      }
      over.set(phase, reason)
    }
  }

  return {
    signal: beginning.signal,
    add(phase, close) {
      const left = closes.get(phase) ?? new Set()
      left.add(close)
      const reason = over.get(phase)
      if (reason) void closeAll(phase, left, reason)
      return () => void left.delete(close)
    },
    run(reason) {
      running ??= runPhases(reason)
      return running
    },
  }
}
