import type { ErrorKind, OpenAiErrorCode } from '#platform/errors.ts'

interface Explanation {
  /** The HTTP status of the answer; null for codes that occur only inside a response object. */
  status: number | null
  meaning: string
  /** The steps that help. */
  remedy: string
  /** Whether a client may repeat the same request. */
  repeat: string
}

const kinds = {
  invalid: {
    status: 400,
    meaning: 'The request breaks a rule of this call, or its body is not valid JSON.',
    remedy: '`detail` names the rule. Change the request.',
    repeat: 'No. The same request fails again.',
  },
  unauthenticated: {
    status: 401,
    meaning: 'The request has no API key, or its key is unknown, revoked or expired.',
    remedy: 'Send an active key in the header `Authorization: Bearer <key>`.',
    repeat: 'Only with another key.',
  },
  limit_reached: {
    status: 402,
    meaning: 'The organization has as many instances as its plan allows.',
    remedy:
      'Delete an instance, or change the plan: `POST /v1/subscription/checkout`, or `/portal` if you have one. On a ' +
      'server without billing its operator raises the limit: `npm run admin -- set-limit`.',
    repeat: 'After you have made room.',
  },
  forbidden: {
    status: 403,
    meaning:
      'The key lacks the permission that this call needs, is not for this instance, or its organization is disabled.',
    remedy:
      '`detail` says which of them. Use a key with the permission, or ask the operator of this server to enable ' +
      'the organization.',
    repeat: 'Only with another key.',
  },
  not_found: {
    status: 404,
    meaning:
      'The resource does not exist, or it belongs to another organization. The answer does not tell which of the two.',
    remedy: 'Check the id, and that the key is of the organization that owns the resource.',
    repeat: 'No.',
  },
  timed_out: {
    status: 408,
    meaning: 'The body of the request arrived too slowly.',
    remedy: 'Send it faster. An upload may take long, but must not pause for 60 seconds.',
    repeat: 'Yes. Nothing has changed.',
  },
  conflict: {
    status: 409,
    meaning: 'The current state of the resource does not allow this call.',
    remedy: '`detail` names the state, and how to leave it.',
    repeat: 'After the state has changed. With `Retry-After`, after this many seconds.',
  },
  too_large: {
    status: 413,
    meaning: 'The body of the request is larger than this call accepts.',
    remedy: 'Send less: up to 1 MiB, to an agent up to 20 MiB. `detail` names the limit of a file.',
    repeat: 'No.',
  },
  unsupported_media: {
    status: 415,
    meaning: 'This call does not accept the content type of the body.',
    remedy: 'Send `application/json`, or `multipart/form-data` to upload a file.',
    repeat: 'No.',
  },
  no_such_range: {
    status: 416,
    meaning: 'The file has no bytes in the requested `Range`. `Content-Range` has the size of the file.',
    remedy: 'Request a range that is inside the file, or leave `Range` out.',
    repeat: 'No.',
  },
  unprocessable: {
    status: 422,
    meaning: 'The request does not fit its schema, or its `Idempotency-Key` came with another request before.',
    remedy: '`detail` lists up to 20 faults, each with its place in the request. Correct them.',
    repeat: 'No. The same request fails again.',
  },
  rate_limited: {
    status: 429,
    meaning: 'There were too many requests: for this key, from this address, or for the model provider.',
    remedy: 'Send fewer requests. The header `RateLimit` says how many are left.',
    repeat: 'Yes, after `Retry-After` seconds.',
  },
  not_implemented: {
    status: 501,
    meaning: 'This server is not configured for this call.',
    remedy: '`detail` names the settings that are missing. The operator of this server can set them.',
    repeat: 'No.',
  },
  gateway_unreachable: {
    status: 502,
    meaning:
      'The gateway of the instance cannot be reached or failed, or a service that it called did: the model ' +
      'provider, a chat platform, the skill registry.',
    remedy: '`detail.error` names the cause. If it is the gateway, stop and start the instance.',
    repeat: 'Yes, unless the answer has `x-should-retry: false`: a turn may have begun.',
  },
  unavailable: {
    status: 503,
    meaning: 'A service that this server depends on is not available: the database, for example.',
    remedy: 'Wait. If it lasts, ask the operator of this server.',
    repeat: 'Yes, after `Retry-After` seconds, unless the answer has `x-should-retry: false`.',
  },
  gateway_timeout: {
    status: 504,
    meaning: 'The gateway of the instance did not answer in time. The requested action may still happen.',
    remedy: 'Read the state of the resource to see whether it happened.',
    repeat: 'A read: yes. Another call: only if the action did not happen.',
  },
  no_space: {
    status: 507,
    meaning: 'The disk of the instance is full.',
    remedy: 'Delete files of the instance.',
    repeat: 'After you have deleted files.',
  },
} as const satisfies Record<ErrorKind, Explanation>

const openAiCodes = {
  previous_response_not_found: {
    status: 400,
    meaning: '`previous_response_id` names a response that does not exist or is no longer stored.',
    remedy: 'Leave it out, or send the id of the latest response of the session. The session remembers without it.',
    repeat: 'No.',
  },
  websocket_connection_limit_reached: {
    status: 400,
    meaning: 'The WebSocket connection is 60 minutes old. The server closes it.',
    remedy: 'Open another connection, and continue with `previous_response_id`.',
    repeat: 'Yes, on another connection.',
  },
} as const satisfies Record<OpenAiErrorCode, Explanation>

const otherCodes = {
  malformed_request: {
    status: 400,
    meaning: 'The request is not valid HTTP.',
    remedy: 'Check the request line and the headers. An HTTP client library writes them correctly.',
    repeat: 'No.',
  },
  unknown_route: {
    status: 404,
    meaning: 'The API has no route with this method and path.',
    remedy: 'Compare them with the reference at `/docs`.',
    repeat: 'No.',
  },
  expectation_failed: {
    status: 417,
    meaning: 'The header `Expect` has a value other than `100-continue`.',
    remedy: 'Leave the header out.',
    repeat: 'No.',
  },
  headers_too_large: {
    status: 431,
    meaning: 'The headers of the request are larger than 16 KiB together.',
    remedy: 'Send fewer or shorter headers.',
    repeat: 'No.',
  },
  internal: {
    status: 500,
    meaning: 'This server has a fault. Its log has the cause, under the id in `x-request-id`.',
    remedy: 'Report the request id to the operator of this server.',
    repeat: 'A read: yes. Another call: first read whether it had an effect.',
  },
  client_left: {
    status: null,
    meaning: 'The client closed its connection before the turn ended. Only a stored response has this code.',
    remedy: 'Keep the connection open until the last event. The agent may have acted already.',
    repeat: 'Yes, if you still want the answer.',
  },
  lost: {
    status: null,
    meaning: 'The server that ran the turn ended before the turn did. Only a stored response has this code.',
    remedy: 'Read the session to see how far the agent came: `GET /v1/instances/{instance_id}/sessions/{session_id}`.',
    repeat: 'Only if the agent has not done what you asked for.',
  },
} as const satisfies Record<string, Explanation>

/**
 * Every code that an error of the API can have. Each has its place on the page `/docs/errors` and in docs/errors.md.
 */
export const errorCodes = { ...kinds, ...otherCodes, ...openAiCodes }

export type ErrorCode = keyof typeof errorCodes

/** The HTTP status of an expected failure. */
export const statusOf = (kind: ErrorKind): number => kinds[kind].status

const kindNames = Object.keys(kinds) as ErrorKind[]

/** The kind of expected failure that is answered with a status; undefined when no kind is. */
export const kindOf = (status: number): ErrorKind | undefined => kindNames.find((kind) => statusOf(kind) === status)

/** The address of a code's explanation. `publicUrl` is the address of this server, without a slash at its end. */
export const docUrl = (publicUrl: string, code: ErrorCode): string => `${publicUrl}/docs/errors#${code}`
