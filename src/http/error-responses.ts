import type { ErrorKind } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'
import { answerHeaders } from './answer-headers.ts'
import { docUrl, errorCodes, kindOf } from './error-codes.ts'
import type { Detail } from './errors.ts'

type Documented = ErrorKind | 'internal'

/** An example of the `detail` of each documented error. */
const details: Record<Documented, Detail> = {
  invalid: texts.unknownVersion('v9', ['v1']),
  unauthenticated: texts.sendKey,
  limit_reached: texts.instanceLimit(1, 1),
  forbidden: texts.lacksPermission('configure'),
  not_found: texts.instanceNotFound,
  timed_out: 'Request Timeout.',
  conflict: texts.notRunning('stopped'),
  too_large: texts.bodyTooLarge,
  unsupported_media: texts.sendJson,
  no_such_range: texts.noSuchRange(1024),
  unprocessable: [
    { loc: ['body', 'nmae'], msg: 'is not a known field; did you mean `name`?', type: 'additionalProperties' },
  ],
  rate_limited: texts.rateLimited(7),
  not_implemented: texts.noBilling,
  gateway_unreachable: { error: texts.gatewayUnavailable },
  unavailable: texts.databaseDown,
  gateway_timeout: { error: 'The gateway did not answer in time.' },
  no_space: texts.diskFull,
  internal: texts.internal,
}

function documentedOf(status: number): Documented {
  const code = status === errorCodes.internal.status ? 'internal' : kindOf(status)
  if (!code) throw new Error(`no error has the status ${status}`)
  return code
}

/** `NotFound` of `not_found`. */
const componentName = (code: Documented): string =>
  code.replace(/(?:^|_)(\w)/g, (_, first: string) => first.toUpperCase())

/** A reference to the documented answer of a status. Throws for a status that no error has. */
export const responseOf = (status: number) => ({
  $ref: `#/components/responses/${componentName(documentedOf(status))}`,
})

function answerOf(code: Documented) {
  const { status, meaning } = errorCodes[code]
  const example = { detail: details[code], error: { doc_url: docUrl('https://chowder.example.com', code) } }
  return {
    description: meaning,
    headers: {
      ...answerHeaders.every,
      ...(status === 429 && answerHeaders.limited),
      ...((status === 429 || status === 503) && answerHeaders.retryAfter),
    },
    content: { 'application/json': { schema: { $ref: '#/components/schemas/Error' }, example } },
  }
}

/** The documented answers of these statuses, by the names of their components. */
export function errorResponses(statuses: Iterable<number>): Record<string, Record<string, unknown>> {
  const codes = [...statuses].sort((a, b) => a - b).map(documentedOf)
  return Object.fromEntries(codes.map((code) => [componentName(code), answerOf(code)]))
}
