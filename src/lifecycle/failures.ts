import { GatewayRefusal } from '#openclaw/gateway.ts'
import { AppError } from '#platform/errors.ts'
import { SandboxCapacityError, SandboxPathError } from '#sandbox/driver.ts'

/** A failure with a message fit for the instance's owner. `final` when trying again cannot heal it. */
export class StepFailure extends Error {
  override name = 'StepFailure'
  readonly final: boolean
  /** The gateway's own words, for its owner alone: what an agent says is no matter for Chowder's log. */
  readonly #quote: string
  constructor(message: string, options: ErrorOptions & { final?: boolean; quote?: string } = {}) {
    super(message, options)
    this.final = options.final ?? false
    this.#quote = options.quote ?? ''
  }

  get ownersMessage(): string {
    return this.#quote ? `${this.message}: ${this.#quote}` : this.message
  }
}

/** Says nothing against the attempt, which is not counted; the next one comes after a pause of its own. */
export class Uncounted extends StepFailure {
  override name = 'Uncounted'
  readonly pauseSeconds: number
  constructor(message: string, pauseSeconds: number) {
    super(message)
    this.pauseSeconds = pauseSeconds
  }
}

/** Takes that may fail before an instance that should run is given up. */
export const maxAttempts = 5

/** From this failed attempt on to end a sandbox somebody has to look: the log line is an error. */
export const alarmingAttempts = 10

const firstPauseSeconds = 1
/** A start has no more than five attempts; an end has no last one, and must not hammer a platform that is down. */
const maxPauseSeconds = 600

/** Seconds until the next attempt: doubled each time up to the cap, and half of it by chance, so that no herd forms. */
export function backoffSeconds(attempts: number): number {
  const full = Math.min(firstPauseSeconds * 2 ** Math.min(Math.max(0, attempts - 1), 16), maxPauseSeconds)
  return full / 2 + (Math.random() * full) / 2
}

/** Whether trying again is useless: the same input would fail the same way. */
export const isFinal = (error: unknown): boolean =>
  error instanceof StepFailure ? error.final : error instanceof AppError && error.kind === 'invalid'

/** What the owner may read of a failure. A platform's own words stay in the log: they may name the host's paths. */
export function messageFor(error: unknown, step: string | null): string {
  if (error instanceof StepFailure) return error.ownersMessage
  if (error instanceof AppError || error instanceof SandboxPathError || error instanceof SandboxCapacityError)
    return error.message
  if (error instanceof GatewayRefusal) return `OpenClaw refused the configuration: ${error.message}`
  return `The step ${step ?? 'start'} failed. The reason is in Chowder's log.`
}
