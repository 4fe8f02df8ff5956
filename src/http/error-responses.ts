import { STATUS_CODES } from 'node:http'
import { kinds } from '#errors/codes/kinds.ts'
import { type ErrorCode, type ErrorKind, errorCodes, kindOf } from '#errors/codes.ts'
import { texts } from '#errors/texts.ts'
import { answerHeaders } from './answer-headers.ts'
import { errorBody, type Failure } from './error-body.ts'

/** An example of each kind of failure. */
export const errorExamples: Record<ErrorKind, Failure> = {
  invalid: { code: 'invalid_value', detail: texts.unknownVersion('v9', ['v1']), param: 'openclaw_version' },
  unauthenticated: { code: 'missing_api_key', detail: texts.sendKey },
  limit_reached: { code: 'instance_limit_reached', detail: texts.instanceLimit(1, 1) },
  forbidden: { code: 'lacks_permission', detail: texts.lacksPermission('configure') },
  not_found: { code: 'instance_not_found', detail: texts.instanceNotFound },
  method_not_allowed: { code: 'method_not_allowed', detail: 'Method Not Allowed.' },
  timed_out: { code: 'timed_out', detail: 'Request Timeout.' },
  conflict: { code: 'instance_not_running', detail: texts.notRunning('stopped') },
  too_large: { code: 'too_large', detail: texts.bodyTooLarge },
  unsupported_media: { code: 'unsupported_media', detail: texts.sendJson },
  no_such_range: { code: 'no_such_range', detail: texts.noSuchRange(1024) },
  expectation_failed: { code: 'expectation_failed', detail: texts.noExpectations },
  unknown_host: { code: 'unknown_host', detail: texts.unknownHost('evil.example') },
  unprocessable: {
    code: 'validation_failed',
    detail: [
      { loc: ['body', 'nmae'], msg: 'is not a known field; did you mean `name`?', type: 'additionalProperties' },
    ],
    param: 'nmae',
  },
  rate_limited: { code: 'rate_limited', detail: texts.rateLimited(7) },
  headers_too_large: { code: 'headers_too_large', detail: 'Request Header Fields Too Large.' },
  internal: { code: 'internal', detail: texts.internal },
  not_implemented: { code: 'billing_not_configured', detail: texts.noBilling },
  gateway_unreachable: { code: 'gateway_unreachable', detail: { error: texts.gatewayUnavailable } },
  unavailable: { code: 'unavailable', detail: texts.databaseDown },
  gateway_timeout: { code: 'gateway_timeout', detail: { error: texts.gatewayUnavailable } },
  no_space: { code: 'no_space', detail: texts.diskFull },
}
export const exampleContext = {
  requestId: '01a218de-6614-7c4f-95ce-63a40db57224',
  publicUrl: 'https://chowder.example.com',
}

function kindWith(status: number): ErrorKind {
  const kind = kindOf(status)
  if (!kind) throw new Error(`no error has the status ${status}`)
  return kind
}

/** Converts `not_found` to `NotFound`. */
const componentName = (kind: ErrorKind): string =>
  kind.replace(/(?:^|_)(\w)/g, (_, first: string) => first.toUpperCase())

/** A reference to the documented answer of a status. Throws if no error uses the status. */
export const responseOf = (status: number) => ({ $ref: `#/components/responses/${componentName(kindWith(status))}` })

const codesOf = (kind: ErrorKind) =>
  (Object.keys(errorCodes) as ErrorCode[]).filter((code) => errorCodes[code].kind === kind)

function answerOf(kind: ErrorKind) {
  const { status } = kinds[kind]
  const codes = codesOf(kind)
  const list = codes.map((code) => `\`${code}\``).join(', ')
  const description =
    codes.length === 1 ? errorCodes[codes[0] as ErrorCode].meaning : `${STATUS_CODES[status]}: ${list}.`
  return {
    description,
    headers: {
      ...answerHeaders.every,
      ...(status === 401 && answerHeaders.challenge),
      ...(status === 429 && answerHeaders.limited),
      ...((status === 429 || status === 503) && answerHeaders.retryAfter),
    },
    content: {
      'application/json': {
        schema: { $ref: '#/components/schemas/ApiError' },
        example: errorBody(errorExamples[kind], exampleContext),
      },
    },
  }
}

/** The documented answers of these statuses, by the names of their components. */
export function errorResponses(statuses: Iterable<number>): Record<string, Record<string, unknown>> {
  const documented = [...statuses].sort((a, b) => a - b).map(kindWith)
  return Object.fromEntries(documented.map((kind) => [componentName(kind), answerOf(kind)]))
}
