import { AppError } from '#errors/app-error.ts'
import { errorTexts } from './error-texts.ts'

/** All times are in ms. */
export interface TurnTimeouts {
  /** Time without a byte from the gateway after which its health is checked. */
  silenceMs: number
  /** Time between two health checks, and the timeout of each. */
  probeEveryMs: number
  /** Time without a byte and without a successful health check after which the turn ends. */
  hungMs: number
  /** The maximum duration of a turn. */
  limitMs: number
  /** Time for a client to read the rest of an answer after its turn or connection was ended. */
  graceMs: number
}

export const defaultTurnTimeouts: TurnTimeouts = {
  silenceMs: 15_000,
  probeEveryMs: 5_000,
  hungMs: 10 * 60_000,
  limitMs: 15 * 60_000,
  graceMs: 5_000,
}

/**
 * The reason of a turn that ends because its client left. Shared by all turns: a stack trace for each would be slow.
 */
export const turnAbandoned = new Error('the client left')

/** The reason of a turn that ends because its response was cancelled. */
export const turnCancelled = new Error('the turn was cancelled')

type Probe = (options: { timeoutMs: number; signal: AbortSignal }) => Promise<boolean>

/**
 * One turn of an agent, from the request to the last byte of its answer. `signal` fires when the turn must end, with
 * `turnAbandoned`, `turnCancelled`, or an AppError with the cause. An agent may think for minutes without a byte, and
 * its gateway may work for minutes without answering a health check: a worker decides whether it hangs, and restarts
 * it, which breaks the turn off. A turn holds a timer until `end` or `finish`. The wait for earlier turns of its
 * session counts.
 */
export class Turn {
  readonly #timeouts: TurnTimeouts
  readonly #ended = new AbortController()
  readonly #endsAt: number
  #check: NodeJS.Timeout | undefined
  #isAsked = false
  #isStopped = false
  #lastByteAt: number
  /** The time of the last byte, or of the last successful health check. */
  #lastAnswerAt: number
  #isUnanswered = false
  #waitsSince: number | null = null
  #waitedMs: number | null = null

  constructor(timeouts: TurnTimeouts) {
    this.#timeouts = timeouts
    this.#lastByteAt = performance.now()
    this.#lastAnswerAt = this.#lastByteAt
    this.#endsAt = this.#lastByteAt + timeouts.limitMs
  }

  get signal(): AbortSignal {
    return this.#ended.signal
  }

  /** Whether the gateway is silent and did not answer its latest health check. */
  get isUnanswered(): boolean {
    return this.#isUnanswered
  }

  /** Time, in ms, that it has waited for earlier turns and for its gateway; null before the gateway has answered. */
  get waitedMs(): number | null {
    return this.#waitedMs
  }

  /** Records the start of a wait: for earlier turns, or for its gateway. */
  waits(): void {
    this.#waitsSince ??= performance.now()
  }

  /** Records the end of the wait. */
  hasWaited(): void {
    this.#waitedMs = performance.now() - (this.#waitsSince ?? performance.now())
  }

  /** Records that the agent is asked. A turn that ends earlier may be repeated. */
  ask(): void {
    this.#isAsked = true
  }

  /**
   * Starts to check the gateway's health with `probe` while it is silent. Ends the turn once the gateway has not
   * answered for `hungMs`.
   */
  watch(probe: Probe): void {
    if (this.#check) return
    this.received()
    this.#checkIn(this.#timeouts.silenceMs, probe)
  }

  /** Records that the gateway sent bytes. */
  received(): void {
    this.#lastByteAt = performance.now()
    this.#lastAnswerAt = this.#lastByteAt
    this.#isUnanswered = false
  }

  /** Records that the gateway's answer is complete: only the limit of the whole turn can end it from now on. */
  answered(): void {
    this.#lastByteAt = Number.POSITIVE_INFINITY
  }

  /** Stops the timers: the turn has its answer, or needs none. */
  finish(): void {
    this.#stop()
  }

  /** Ends the turn. Only the first reason counts. */
  end(reason: Error): void {
    this.#stop()
    this.#ended.abort(reason)
  }

  /** The error for a turn whose gateway hangs. */
  hung(): AppError {
    return new AppError('gateway_timeout', errorTexts.hung, { doNotRetry: this.#isAsked })
  }

  #stop(): void {
    this.#isStopped = true
    clearTimeout(this.#check)
  }

  // One timer for both limits, because there are many turns.
  #checkIn(ms: number, probe: Probe): void {
    const leftMs = this.#endsAt - performance.now()
    this.#check = setTimeout(() => void this.#checkNow(probe), Math.max(0, Math.min(ms, leftMs)))
  }

  async #checkNow(probe: Probe): Promise<void> {
    const { silenceMs, probeEveryMs, hungMs, limitMs } = this.#timeouts
    const checkedAt = performance.now()
    if (checkedAt >= this.#endsAt) {
      const minutes = limitMs / 60_000
      return this.end(
        this.#isAsked
          ? new AppError('turn_too_long', errorTexts.tooLong(minutes), { doNotRetry: true })
          : new AppError('turn_waited_too_long', errorTexts.waitedTooLong(minutes)),
      )
    }
    const silentForMs = checkedAt - this.#lastByteAt
    if (silentForMs < silenceMs) return this.#checkIn(silenceMs - silentForMs, probe)
    const isHealthy = await probe({ timeoutMs: probeEveryMs, signal: this.signal }).catch(() => false)
    if (this.#isStopped) return
    const now = performance.now()
    if (isHealthy) this.#lastAnswerAt = now
    this.#isUnanswered = this.#lastAnswerAt < checkedAt
    const unansweredMs = now - this.#lastAnswerAt
    if (unansweredMs >= hungMs) return this.end(this.hung())
    const pauseMs = Math.max(0, probeEveryMs - (now - checkedAt))
    this.#checkIn(Math.min(pauseMs, hungMs - unansweredMs), probe)
  }
}
