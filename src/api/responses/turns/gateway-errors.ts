import { errorTexts } from '#api/responses/format/error-texts.ts'
import type { ModelProvider } from '#database/schema.ts'
import type { ErrorCode } from '#platform/error-codes.ts'
import { AppError } from '#platform/errors.ts'

interface GatewayFailure {
  status: number
  /** The parsed body, undefined when it is not JSON. */
  body: unknown
  retryAfter?: string | undefined
}

/** Whose credentials were refused: the organization's by the provider, or Chowder's by the gateway. */
type Refused = 'provider' | 'chowder' | null

const maxMessageLength = 1000

/** Statuses of the gateway that the caller gets too. */
const forwardedStatuses: Partial<Record<number, ErrorCode>> = {
  400: 'invalid',
  413: 'too_large',
  422: 'unprocessable',
  429: 'rate_limited',
}

const property = (value: unknown, name: string): unknown =>
  typeof value === 'object' && value !== null ? (value as Record<string, unknown>)[name] : undefined

const textOf = (value: unknown): string | null =>
  typeof value === 'string' && value !== '' ? value.slice(0, maxMessageLength) : null

const secondsIn = (retryAfter: string | undefined) =>
  retryAfter && /^\d{1,5}$/.test(retryAfter) ? { retryAfterSeconds: Number(retryAfter) } : {}

/** The text for an error that says that the provider refused the organization's key or account, else null. */
function providerRefusal(provider: ModelProvider, error: unknown): string | null {
  const code = property(error, 'code')
  if (code === 'authentication_error' || code === 'permission_error') return errorTexts.keyRefused(provider)
  return code === 'insufficient_quota' ? errorTexts.noCredit(provider) : null
}

/** The status that a gateway would answer with. In a stream only the code of the error implies it. */
const statusOfCode: Partial<Record<string, number>> = { rate_limit_error: 429, invalid_request_error: 400 }

/** Does the same as `gatewayError` for a turn that failed within a stream. */
export const failedTurn = (provider: ModelProvider, error: unknown, earlierRefusal?: string) =>
  gatewayError(
    provider,
    { status: statusOfCode[String(property(error, 'code'))] ?? 500, body: { object: 'response', error } },
    earlierRefusal,
  )

/**
 * Turns a failure of a gateway into the error for the caller. Before a turn runs the gateway answers
 * `{"error": {message, type}}`, and 401 and 403 are about Chowder's own token. Once the turn runs it answers a whole
 * response object, and they are about the key at the model provider. `earlierRefusal` is the provider's refusal within
 * the last minute: the gateway then does not use the key, and answers `internal error` without the cause.
 */
export function gatewayError(
  provider: ModelProvider,
  { status, body, retryAfter }: GatewayFailure,
  earlierRefusal?: string,
): { error: AppError; refused: Refused } {
  const error = property(body, 'error')
  const message = textOf(property(error, 'message'))
  const hasBegun = property(body, 'object') === 'response'
  const badGateway = (text: string) => new AppError('gateway_unreachable', text, { doNotRetry: hasBegun })

  if (hasBegun) {
    const refusal =
      providerRefusal(provider, error) ?? (status === 401 || status === 403 ? errorTexts.keyRefused(provider) : null)
    if (refusal) return { error: badGateway(refusal), refused: 'provider' }
    if (status === 500 && message === 'internal error' && earlierRefusal) {
      return { error: badGateway(earlierRefusal), refused: null }
    }
  } else if (status === 401 || status === 403 || isLockout(status, error)) {
    // Every further request makes the gateway lock Chowder out for longer.
    const refusal = new AppError('gateway_unreachable', errorTexts.chowderRefused, { doNotRetry: true })
    return { error: refusal, refused: 'chowder' }
  }
  const isUnknownModel =
    status === 404 && [property(error, 'code'), property(error, 'type')].includes('invalid_request_error')
  const kind = isUnknownModel ? 'invalid' : forwardedStatuses[status]
  if (!kind) return { error: badGateway(errorTexts.gatewayFailed(status, message)), refused: null }
  const text = message === null ? errorTexts.gatewayRefusedRequest : (clearerTexts[message] ?? message)
  return { error: new AppError(kind, text, secondsIn(retryAfter)), refused: null }
}

/** Texts for refusals whose reason OpenClaw writes only to its log. */
const clearerTexts: Partial<Record<string, string>> = {
  'invalid request': errorTexts.mediaRefused,
  'invalid tool configuration': errorTexts.toolRefused,
}

/** Whether a 429 is the gateway's own for too many bad tokens. A 429 of the provider comes in a response object. */
const isLockout = (status: number, error: unknown): boolean =>
  status === 429 && /failed authentication/i.test(textOf(property(error, 'message')) ?? '')
