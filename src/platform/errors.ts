/** The kinds of expected failures. */
export type ErrorKind =
  | 'invalid'
  | 'unauthenticated'
  | 'limit_reached'
  | 'forbidden'
  | 'not_found'
  | 'timed_out'
  | 'conflict'
  | 'too_large'
  | 'unsupported_media'
  | 'no_such_range'
  | 'unprocessable'
  | 'rate_limited'
  | 'not_implemented'
  | 'gateway_unreachable'
  | 'unavailable'
  | 'gateway_timeout'
  | 'no_space'

/** Codes that OpenAI clients look for, where the kind says less. */
export type OpenAiErrorCode = 'previous_response_not_found' | 'websocket_connection_limit_reached'

export interface AppErrorOptions extends ErrorOptions {
  /** Seconds after which the caller should repeat the request: sent as `Retry-After`. */
  retryAfterSeconds?: number
  /** Tells API clients not to repeat the request by themselves: a turn may already have begun. */
  doNotRetry?: boolean
  /** On the routes for OpenAI clients: the field that is at fault. */
  param?: string
  /** Takes the place of the kind as the code of the error. */
  code?: OpenAiErrorCode
}

/** An expected failure whose message is safe to show the caller. Anything else is a bug and answers 500. */
export class AppError extends Error {
  readonly kind: ErrorKind
  readonly code: ErrorKind | OpenAiErrorCode
  readonly retryAfterSeconds: number | undefined
  readonly doNotRetry: boolean
  readonly param: string | undefined

  constructor(kind: ErrorKind, message: string, options: AppErrorOptions = {}) {
    super(message, options)
    this.name = 'AppError'
    this.kind = kind
    this.code = options.code ?? kind
    this.retryAfterSeconds = options.retryAfterSeconds
    this.doNotRetry = options.doNotRetry ?? false
    this.param = options.param
  }
}
