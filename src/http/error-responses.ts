import { type ErrorKind, statusOf } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'
import { answerHeaders } from './answer-headers.ts'

type Detail = string | { error: string } | object[]

/** What each kind of failure means to a caller, and how one looks. */
const meanings: Record<ErrorKind, { means: string; detail: Detail }> = {
  invalid: {
    means: 'The request breaks a rule, or its body is not JSON. `detail` says which rule and what to do.',
    detail: texts.unknownVersion('v9', ['v1']),
  },
  unauthenticated: { means: 'No key came, or one that is unknown, revoked or expired.', detail: texts.sendKey },
  limit_reached: { means: 'The plan’s limit is reached.', detail: texts.instanceLimit(1, 1) },
  forbidden: {
    means: 'The key does not hold what this call needs, is not for this instance, or its organization is disabled.',
    detail: texts.lacksPermission('configure'),
  },
  not_found: {
    means: 'There is no such thing, or it is another organization’s: the two cannot be told apart.',
    detail: texts.instanceNotFound,
  },
  timed_out: { means: 'The body came too slowly.', detail: 'Request Timeout.' },
  conflict: { means: 'The state of the thing forbids it now.', detail: texts.notRunning('stopped') },
  too_large: { means: 'The body is larger than this call takes.', detail: 'The body is too large.' },
  unsupported_media: {
    means: 'The body has a content type that this call does not take.',
    detail: 'Send the body as application/json.',
  },
  no_such_range: {
    means: 'The file has no bytes in that range. `Content-Range` says how many it has.',
    detail: texts.noSuchRange(1024),
  },
  unprocessable: {
    means: 'The request does not fit its schema. `detail` lists at most 20 faults.',
    detail: [{ loc: ['body', 'nmae'], msg: 'is not a known field', type: 'additionalProperties' }],
  },
  rate_limited: {
    means: 'Too many requests. `Retry-After` says when to go on.',
    detail: texts.rateLimited(7),
  },
  not_implemented: { means: 'This server is not set up for it.', detail: texts.noBilling },
  gateway_unreachable: {
    means:
      'The instance’s gateway cannot be reached, refused or failed, or what it asked did: the model provider, a chat platform.',
    detail: { error: texts.gatewayUnavailable },
  },
  unavailable: {
    means: 'Something this server stands on is down. Repeat the call after `Retry-After` seconds.',
    detail: texts.databaseDown,
  },
  gateway_timeout: {
    means: 'The instance’s gateway did not answer in time. What was asked may still happen.',
    detail: { error: 'The gateway did not answer in time.' },
  },
  no_space: { means: 'The instance’s disk is full.', detail: texts.diskFull },
}

const internal = {
  means: 'A fault of this server. It is in its log under the request’s id.',
  detail: 'Internal error.',
}

const kinds = Object.keys(meanings) as ErrorKind[]
const kindOf = new Map<number, ErrorKind | 'internal'>([
  ...kinds.map((kind) => [statusOf[kind], kind] as const),
  [500, 'internal'],
])

function nameOf(status: number): string {
  const kind = kindOf.get(status)
  if (!kind) throw new Error(`no failure has the status ${status}`)
  return kind.replace(/(?:^|_)(\w)/g, (_, first: string) => first.toUpperCase())
}

/** A reference to the documented answer of a status. Throws for a status that no failure of ours has. */
export const responseOf = (status: number) => ({ $ref: `#/components/responses/${nameOf(status)}` })

/** The documented answers of these failures, by name. */
export function errorResponses(statuses: Iterable<number>): Record<string, Record<string, unknown>> {
  const answer = (status: number) => {
    const kind = kindOf.get(status) ?? 'internal'
    const { means, detail } = kind === 'internal' ? internal : meanings[kind]
    return {
      description: means,
      headers: {
        ...answerHeaders.every,
        ...(status === 429 && answerHeaders.limited),
        ...((status === 429 || status === 503) && answerHeaders.retryAfter),
      },
      content: { 'application/json': { schema: { $ref: '#/components/schemas/Error' }, example: { detail } } },
    }
  }
  return Object.fromEntries([...statuses].sort((a, b) => a - b).map((status) => [nameOf(status), answer(status)]))
}
