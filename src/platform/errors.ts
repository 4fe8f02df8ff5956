import { type ErrorCode, type ErrorKind, errorCodes } from './error-codes.ts'

export interface AppErrorOptions extends ErrorOptions {
  /** Seconds after which the caller should repeat the request: sent as `Retry-After`. */
  retryAfterSeconds?: number
  /** Tells API clients not to repeat the request by themselves: a turn may already have begun. */
  doNotRetry?: boolean
  /** The field that is at fault. */
  param?: string | undefined
  /** A sentence that follows the message in `error.message`, where the contract fixes the whole of `detail`. */
  hint?: string | undefined
}

/** An expected failure whose message is safe to show the caller. Anything else is a bug and answers 500. */
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
