/** Which HTTP status each kind of expected failure has: the one table. */
export const statusOf = {
  invalid: 400,
  unauthenticated: 401,
  limit_reached: 402,
  forbidden: 403,
  not_found: 404,
  timed_out: 408,
  conflict: 409,
  too_large: 413,
  unsupported_media: 415,
  no_such_range: 416,
  unprocessable: 422,
  rate_limited: 429,
  not_implemented: 501,
  gateway_unreachable: 502,
  unavailable: 503,
  gateway_timeout: 504,
  no_space: 507,
} as const

export type ErrorKind = keyof typeof statusOf

export interface AppErrorOptions extends ErrorOptions {
  /** Seconds after which asking again makes sense: sent as `Retry-After`. */
  retryAfterSeconds?: number
  /** Tells API clients not to repeat the request by themselves: a turn may already have begun. */
  doNotRetry?: boolean
  /** On the routes for OpenAI clients: the field that is at fault, and the format's own code if there is one. */
  param?: string
  code?: string
}

/** An expected failure whose message is safe to show the caller. Anything else is a bug and answers 500. */
export class AppError extends Error {
  readonly kind: ErrorKind
  readonly retryAfterSeconds: number | undefined
  readonly doNotRetry: boolean
  readonly param: string | undefined
  readonly code: string | undefined

  constructor(kind: ErrorKind, message: string, options: AppErrorOptions = {}) {
    super(message, options)
    this.name = 'AppError'
    this.kind = kind
    this.retryAfterSeconds = options.retryAfterSeconds
    this.doNotRetry = options.doNotRetry ?? false
    this.param = options.param
    this.code = options.code
  }
}
