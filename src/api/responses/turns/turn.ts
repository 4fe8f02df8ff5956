import { errorTexts } from '#api/responses/format/error-texts.ts'
import { AppError } from '#platform/errors.ts'

export interface TurnTimeouts {
  /** Silence, in ms, after which the gateway is asked whether it lives. */
  quietMs: number
  /** Time between two such questions, and how long each may take. */
  probeEveryMs: number
  /** The longest a turn may take. */
  limitMs: number
  /** How long a reader has for what is left, in ms, once a turn or a connection was ended. */
  graceMs: number
}

export const defaultTurnTimeouts: TurnTimeouts = {
  quietMs: 15_000,
  probeEveryMs: 5_000,
  limitMs: 15 * 60_000,
  graceMs: 5_000,
}

const maxFailedProbes = 3

/** The reason of a turn's end when nobody is left to be told. One for all: a stack trace a turn would be dear. */
export const clientLeft = new Error('the client left')

/** The reason of a turn's end that somebody asked for by its response's id. */
export const turnCancelled = new Error('the turn was cancelled')

type Probe = (options: { timeoutMs: number; signal: AbortSignal }) => Promise<boolean>

/**
 * One turn of an agent, from the request to the last byte of its answer. `signal` fires once it must end, with an
 * AppError that says why, with `clientLeft`, or with `turnCancelled`. An agent may think in silence for minutes: what tells that from a hang
 * is whether its gateway still answers. It holds timers until `end` or `finish`.
 */
export class Turn {
  readonly #times: TurnTimeouts
  readonly #over = new AbortController()
  readonly #endsAt: number
  #check: NodeJS.Timeout | undefined
  #isStopped = false
  #heardAt: number
  #failedProbes = 0

  /** What is left to do once nobody waits for the turn any more. */
  onFinish: () => void = () => {}

  constructor(times: TurnTimeouts) {
    this.#times = times
    this.#heardAt = performance.now()
    this.#endsAt = this.#heardAt + times.limitMs
  }

  get signal(): AbortSignal {
    return this.#over.signal
  }

  /** From now on silence makes the turn ask `probe`; three failures in a row end it. */
  watch(probe: Probe): void {
    this.heard()
    this.#checkIn(this.#times.quietMs, probe)
  }

  /** The gateway sent something. */
  heard(): void {
    this.#heardAt = performance.now()
  }

  /** The gateway said all that it will: it is asked nothing more, and only the limit of the whole turn is left. */
  answered(): void {
    this.#heardAt = Number.POSITIVE_INFINITY
  }

  /** Nobody waits for it any more, however it ended. */
  finish(): void {
    this.#stop()
    this.onFinish()
  }

  end(reason: Error): void {
    this.#stop()
    this.#over.abort(reason)
  }

  #stop(): void {
    this.#isStopped = true
    clearTimeout(this.#check)
  }

  /** One timer for both limits: a turn is short beside them, and there are many. */
  #checkIn(ms: number, probe: Probe): void {
    const leftMs = this.#endsAt - performance.now()
    this.#check = setTimeout(() => void this.#ask(probe), Math.min(ms, leftMs))
  }

  async #ask(probe: Probe): Promise<void> {
    const { quietMs, probeEveryMs } = this.#times
    const askedAt = performance.now()
    if (askedAt >= this.#endsAt) {
      const minutes = this.#times.limitMs / 60_000
      return this.end(new AppError('gateway_timeout', errorTexts.tooLong(minutes), { doNotRetry: true }))
    }
    const quietFor = askedAt - this.#heardAt
    if (quietFor < quietMs) {
      this.#failedProbes = 0
      return this.#checkIn(quietMs - quietFor, probe)
    }
    const answers = await probe({
      timeoutMs: probeEveryMs,
      signal: this.signal,
    }).catch(() => false)
    if (this.#isStopped) return
    this.#failedProbes = answers || this.#heardAt > askedAt ? 0 : this.#failedProbes + 1
    if (this.#failedProbes === maxFailedProbes) {
      return this.end(new AppError('gateway_timeout', errorTexts.hung, { doNotRetry: true }))
    }
    this.#checkIn(Math.max(0, probeEveryMs - (performance.now() - askedAt)), probe)
  }
}
