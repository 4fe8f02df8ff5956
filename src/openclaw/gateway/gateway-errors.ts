export interface ConfigIssue {
  path: string
  message: string
}

/** The gateway refused a request. The message is the gateway's, and may be shown to callers. */
export class GatewayRefusal extends Error {
  override name = 'GatewayRefusal'
  readonly code: string
  /** The errors of a refused configuration, by key. */
  readonly issues: readonly ConfigIssue[]
  readonly retryAfterMs: number | undefined

  constructor(code: string, message: string, options: { issues?: readonly ConfigIssue[]; retryAfterMs?: number } = {}) {
    super(message)
    this.code = code
    this.issues = options.issues ?? []
    this.retryAfterMs = options.retryAfterMs
  }
}

/** The gateway did not answer. With `outcomeUnknown`, the request was sent and may have been carried out. */
export class GatewayUnreachable extends Error {
  override name = 'GatewayUnreachable'
  readonly outcomeUnknown: boolean

  constructor(message: string, options: ErrorOptions & { outcomeUnknown?: boolean } = {}) {
    super(message, options)
    this.outcomeUnknown = options.outcomeUnknown ?? false
  }
}
