import type { IncomingHttpHeaders } from 'node:http'
import type { ModelProvider } from '#database/schema.ts'

/** A call that was let through. */
export interface RelayedCall {
  instanceId: string
  organizationId: string
  provider: ModelProvider
  method: string
  /** The path at the vendor, without a query. */
  path: string
}

/** How a call ended. */
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

/** Watches one call. Its methods must not throw, and must return at once: the answer waits for them. */
export interface CallObserver {
  /** A piece of the body of the request, as it is sent on. It must not be changed. */
  asked?(bytes: Buffer): void
  /** The status and the headers of the vendor's answer. */
  answer?(status: number, headers: IncomingHttpHeaders): void
  /** A piece of the body of the answer, uncompressed, before it is sent on. It must not be changed. */
  chunk?(bytes: Buffer): void
  /** Called once, last. */
  end?(end: CallEnd): void
}

/** Called for each call right before it is sent to the vendor. Null: it is not watched. */
export type ObserveCall = (call: RelayedCall) => CallObserver | null
