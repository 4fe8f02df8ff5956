/** The kinds of failures, with their common properties. `repeat` says whether a client may repeat the same request. */
export const kinds = {
  invalid: { status: 400, type: 'invalid_request_error', repeat: 'Not as it is: change the request first.' },
  unauthenticated: { status: 401, type: 'authentication_error', repeat: 'Only with other credentials.' },
  limit_reached: { status: 402, type: 'limit_error', repeat: 'After there is room again.' },
  forbidden: {
    status: 403,
    type: 'permission_error',
    repeat: 'With another key, or after the operator has allowed it.',
  },
  not_found: { status: 404, type: 'invalid_request_error', repeat: 'No.' },
  method_not_allowed: { status: 405, type: 'invalid_request_error', repeat: 'No.' },
  timed_out: {
    status: 408,
    type: 'invalid_request_error',
    repeat: 'Yes. If a turn had begun, read its session first.',
  },
  conflict: { status: 409, type: 'invalid_request_error', repeat: 'After the state has changed.' },
  too_large: { status: 413, type: 'invalid_request_error', repeat: 'No.' },
  unsupported_media: { status: 415, type: 'invalid_request_error', repeat: 'No.' },
  no_such_range: { status: 416, type: 'invalid_request_error', repeat: 'No.' },
  expectation_failed: { status: 417, type: 'invalid_request_error', repeat: 'No.' },
  unknown_host: { status: 421, type: 'invalid_request_error', repeat: 'Only with another host in the URL.' },
  unprocessable: { status: 422, type: 'invalid_request_error', repeat: 'Not as it is: change the request first.' },
  rate_limited: {
    status: 429,
    type: 'rate_limit_error',
    repeat: 'Yes, after `Retry-After` seconds, unless the answer has `x-should-retry: false`: the agent had acted.',
  },
  headers_too_large: { status: 431, type: 'invalid_request_error', repeat: 'No.' },
  internal: {
    status: 500,
    type: 'server_error',
    repeat: 'A read: yes. Another call: first read whether it had an effect.',
  },
  not_implemented: { status: 501, type: 'server_error', repeat: 'No.' },
  gateway_unreachable: {
    status: 502,
    type: 'server_error',
    repeat:
      'Yes, after the cause is gone. With `x-should-retry: false`, or after a turn, only if the agent has not done what ' +
      'you asked for: read the session.',
  },
  unavailable: {
    status: 503,
    type: 'server_error',
    repeat: 'Yes, after `Retry-After` seconds, unless the answer has `x-should-retry: false`.',
  },
  gateway_timeout: {
    status: 504,
    type: 'server_error',
    repeat: 'A read: yes. A turn or another call: only if its action did not happen.',
  },
  no_space: { status: 507, type: 'server_error', repeat: 'After there is room again.' },
} as const

/** The common properties of failures: the code of a status, and the basis of programs' decisions. */
export type ErrorKind = keyof typeof kinds

interface Written {
  meaning: string
  /** The remedies. */
  remedy: string
}

export interface Explanation extends Written {
  /** Whether a client may repeat the same request. */
  repeat: string
  kind: ErrorKind
  /** The HTTP status of the answer. */
  status: number
  /** The `type` of the error for OpenAI clients. */
  type: string
}

/** The explanations of the codes of one kind. */
export const codesOf = <Code extends string>(kind: ErrorKind, codes: Record<Code, Written>) =>
  Object.fromEntries(
    Object.entries<Written>(codes).map(([code, written]) => [code, { kind, ...kinds[kind], ...written }]),
  ) as Record<Code, Explanation>
