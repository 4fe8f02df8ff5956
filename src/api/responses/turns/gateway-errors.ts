import { errorTexts } from '#api/responses/format/error-texts.ts'
import type { ModelProvider } from '#database/schema.ts'
import { AppError, type ErrorKind } from '#platform/errors.ts'

interface GatewayFailure {
  status: number
  /** The parsed body; anything when the gateway sent something else than JSON. */
  body: unknown
  retryAfter?: string | undefined
}

/** Whose credentials a failure is about, if it is about any: the organization's at the provider, or ours at the gateway. */
type Refused = 'provider' | 'chowder' | null

const maxMessageLength = 1000

const keptStatuses: Partial<Record<number, ErrorKind>> = {
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

/** Whether a failed response's error says that the provider refused the organization's key or account. */
function providerRefusal(provider: ModelProvider, error: unknown): string | null {
  const code = property(error, 'code')
  if (code === 'authentication_error' || code === 'permission_error') return errorTexts.keyRefused(provider)
  return code === 'insufficient_quota' ? errorTexts.noCredit(provider) : null
}

/** The status that a gateway answers a failure with, which within a stream only the failure's code tells. */
const statusOfCode: Partial<Record<string, number>> = { rate_limit_error: 429, invalid_request_error: 400 }

/** The same for a turn that failed within a stream. */
export const failedTurn = (provider: ModelProvider, error: unknown, earlierRefusal?: string) =>
  gatewayError(
    provider,
    { status: statusOfCode[String(property(error, 'code'))] ?? 500, body: { object: 'response', error } },
    earlierRefusal,
  )

/**
 * What a gateway's refusal means to the caller. Before a run the gateway answers `{"error": {message, type}}`, and
 * 401 and 403 are about our own token; once the run has begun it answers a whole response object, and they are the
 * model provider's. `earlierRefusal` is what the provider refused within the last minute: the gateway then puts the
 * key aside and answers a bare `internal error`, whose cause only its log tells.
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
    // Trying again only makes the gateway lock us out for longer.
    const refusal = new AppError('gateway_unreachable', errorTexts.chowderRefused, { doNotRetry: true })
    return { error: refusal, refused: 'chowder' }
  }
  const isUnknownModel =
    status === 404 && [property(error, 'code'), property(error, 'type')].includes('invalid_request_error')
  const kind = isUnknownModel ? 'invalid' : keptStatuses[status]
  if (!kind)
    return {
      error: badGateway(errorTexts.gatewayFailed(status, message)),
      refused: null,
    }
  const text = message === null ? errorTexts.gatewayRefusedRequest : (plainer[message] ?? message)
  return { error: new AppError(kind, text, secondsIn(retryAfter)), refused: null }
}

/** Refusals whose reason OpenClaw writes to its log only. */
const plainer: Partial<Record<string, string>> = {
  'invalid request': errorTexts.mediaRefused,
  'invalid tool configuration': errorTexts.toolRefused,
}

/** The gateway's 429 for too many bad tokens, which says nothing about the caller. A provider's has a response around it. */
const isLockout = (status: number, error: unknown): boolean =>
  status === 429 && /failed authentication/i.test(textOf(property(error, 'message')) ?? '')
