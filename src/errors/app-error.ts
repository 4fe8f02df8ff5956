import { type ErrorCode, type ErrorKind, errorCodes } from './codes.ts'

export interface AppErrorOptions extends ErrorOptions {
  /** Seconds after which the caller should repeat the request, sent as `Retry-After`. */
  retryAfterSeconds?: number
  /** Advises API clients not to repeat the request automatically: a turn may already have begun. */
  doNotRetry?: boolean
  /** The wrong field. */
  param?: string | undefined
  /** A sentence appended to the message in `error.message`, if the contract fixes the whole of `detail`. */
  hint?: string | undefined
}

/** An expected failure whose message is safe for the caller. Any other error is a bug and answers 500. */
export class AppError extends Error {
  readonly code: ErrorCode
  /** The kind of the failure. */
  readonly kind: ErrorKind
  readonly retryAfterSeconds: number | undefined
  readonly doNotRetry: boolean
  readonly param: string | undefined
  readonly hint: string | undefined

  constructor(code: ErrorCode, message: string, options: AppErrorOptions = {}) {
    super(message, options)
    this.name = 'AppError'
    this.code = code
    this.kind = errorCodes[code].kind
    this.retryAfterSeconds = options.retryAfterSeconds
    this.doNotRetry = options.doNotRetry ?? false
    this.param = options.param
    this.hint = options.hint
  }
}
