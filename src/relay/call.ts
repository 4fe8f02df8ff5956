import type { IncomingHttpHeaders } from 'node:http'
import type { HardBudget } from '#database/budget-schema.ts'
import type { ModelProvider } from '#database/schema.ts'

/** A permitted call. */
export interface RelayedCall {
  instanceId: string
  organizationId: string
  provider: ModelProvider
  method: string
  /** The path at the vendor, without a query. */
  path: string
  /** The hard budgets that must allow it, without those of end users. */
  budgets: readonly HardBudget[]
  /** Whether there are hard budgets of end users. */
  hasUserBudgets: boolean
  /** Whether the agent may reach any public host, so that tools of the vendor may do so for it. */
  hasOpenEgress: boolean
}

/** The end of a call. */
export type CallEnd =
  /** The whole answer was sent. */
  | 'answered'
  /** The client left before. */
  | 'client left'
  /** The vendor could not be reached, fell silent, or cut its answer. */
  | 'vendor failed'
  /** Its body was larger than a call may carry. */
  | 'too large'
  /** The token was refused while the call was open. */
  | 'token refused'
  /** It was refused before it was sent. */
  | 'refused'

/** A call that is not sent to the vendor, with the answer of the relay. */
export class CallRefused extends Error {
  override name = 'CallRefused'
  readonly status: number
  /** When to ask again; null: a repetition would be refused too, and the client should not retry. */
  readonly retryAfterSeconds: number | null

  constructor(status: number, message: string, retryAfterSeconds: number | null = null) {
    super(message)
    this.status = status
    this.retryAfterSeconds = retryAfterSeconds
  }
}

/** The body of a call as it comes from its client. */
export interface CallBody {
  /** The announced bytes; null if the client announced none. */
  length: number | null
  /** Reads the beginning until `isEnough`, the end, or some hundred KiB. Throws BodyTooLarge. */
  readAhead(isEnough: () => boolean): Promise<void>
  /** Whether the whole body has come. */
  hasEnded(): boolean
}

/** Observes one call. All methods but `admit` must not throw, and must return at once: the answer waits for them. */
export interface CallObserver {
  /** Called once, before the call is sent, and awaited. Throws CallRefused. */
  admit?(body: CallBody): Promise<void>
  /** A piece of the body of the request, as it comes. It must not be changed. */
  asked?(bytes: Buffer): void
  /** The status and the headers of the vendor's answer. */
  answer?(status: number, headers: IncomingHttpHeaders): void
  /** A piece of the body of the answer, uncompressed, before it is sent on. It must not be changed. */
  chunk?(bytes: Buffer): void
  /** Called once, last. */
  end?(end: CallEnd): void
}

/**
 * Called for each call before it is sent to the vendor. Null: it is not observed. `refuse` ends a call that is being
 * sent, and answers it with the refusal unless the answer has begun.
 */
export type ObserveCall = (call: RelayedCall, refuse: (refusal: CallRefused) => void) => CallObserver | null
