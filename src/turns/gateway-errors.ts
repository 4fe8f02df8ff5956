import type { ModelProvider } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import type { ErrorCode } from '#errors/codes.ts'
import { errorTexts } from './error-texts.ts'
import { providerFailure } from './provider-failures.ts'

export interface GatewayFailure {
  /** The status of the answer; undefined in a stream, which has none for its failure. */
  status: number | undefined
  /** The parsed body, undefined when it is not JSON. */
  body: unknown
  retryAfter?: string | undefined
  /** Whether the agent has acted in the turn, or may have; true by default. */
  hasActed?: boolean
  /** OpenClaw's entry in the session of a turn with an unexplained failure. */
  note?: string | null | undefined
}

interface Judged {
  error: AppError
  /** Whether the gateway refused Chowder's own token. */
  refusedChowder: boolean
}

const maxMessageLength = 1000
/** The agent may answer in place of its gateway, so only this much of its text is searched for OpenClaw's messages. */
const maxTextLength = 4000

/** Statuses of the gateway that the caller gets too. */
const forwardedStatuses: Partial<Record<number, ErrorCode>> = {
  400: 'openclaw_refused',
  413: 'too_large',
  422: 'unprocessable',
  429: 'rate_limited',
}

/** The status for a failure in a stream. */
const statusOfCode: Partial<Record<string, number>> = { rate_limit_error: 429, invalid_request_error: 400 }

const property = (value: unknown, name: string): unknown =>
  typeof value === 'object' && value !== null ? (value as Record<string, unknown>)[name] : undefined

const textOf = (value: unknown): string | null =>
  typeof value === 'string' && value !== '' ? value.slice(0, maxTextLength) : null

const secondsIn = (retryAfter: string | undefined) =>
  retryAfter && /^\d{1,5}$/.test(retryAfter) ? { retryAfterSeconds: Number(retryAfter) } : {}

const codeIn = (body: unknown): string => textOf(property(property(body, 'error'), 'code')) ?? ''
const messageIn = (body: unknown): string | null => textOf(property(property(body, 'error'), 'message'))

/** OpenClaw's id of a turn in its answer. */
export const idIn = (body: unknown): unknown => property(body, 'id')

/** Whether the gateway's answer only says that a turn has failed. The session then has the reason. */
export const isUnexplained = (body: unknown): boolean =>
  property(body, 'object') === 'response' && messageIn(body) === 'internal error'

/** Whether a gateway that is suspended for a moment refused the turn, which it does 30 s after a thaw. */
export const isSuspended = ({ status, body }: GatewayFailure): boolean =>
  status === 503 && codeIn(body) === 'gateway_unavailable'

/**
 * Converts a failure of a gateway to the error for the caller. Before a turn runs the gateway answers `{"error":
 * {message, type}}`, and 401 and 403 concern Chowder's own token. Once the turn runs it answers a whole response
 * object, and its failures are mostly those of the model provider.
 */
export function gatewayError(provider: ModelProvider, failure: GatewayFailure): Judged {
  const { status, body, retryAfter, hasActed = true, note } = failure
  const message = messageIn(body)
  const hasBegun = property(body, 'object') === 'response'
  if (!hasBegun && (status === 401 || status === 403 || isLockout(status, message))) {
    // Every further request makes the gateway lock Chowder out for longer.
    const error = new AppError('gateway_unreachable', errorTexts.chowderRefused, { doNotRetry: true })
    return { error, refusedChowder: true }
  }
  const failed = { status, code: codeIn(body), message: (isUnexplained(body) && note) || (message ?? ''), hasActed }
  const error = hasBegun ? providerFailure(provider, failed) : null
  if (error) return { error, refusedChowder: false }
  const impliedStatus = status ?? statusOfCode[codeIn(body)] ?? 500
  const code = isUnknownModel(message) ? 'model_not_found' : forwardedStatuses[impliedStatus]
  if (!code) {
    const text = errorTexts.gatewayFailed(impliedStatus, message?.slice(0, maxMessageLength) ?? null)
    return { error: new AppError('gateway_unreachable', text, { doNotRetry: hasBegun }), refusedChowder: false }
  }
  const known = knownRefusals[message ?? '']
  const text =
    message === null ? errorTexts.gatewayRefusedRequest : message.replace(commandAdvice, '').slice(0, maxMessageLength)
  const param = code === 'model_not_found' ? 'model' : undefined
  const options = { ...secondsIn(retryAfter), param }
  return { error: new AppError(known?.code ?? code, known?.text ?? text, options), refusedChowder: false }
}

/** OpenClaw's own refusal of a model that it does not know. */
const isUnknownModel = (message: string | null): boolean => message?.startsWith('Unknown model: ') ?? false

/** Advice to run a command of OpenClaw, which the caller cannot follow. */
const commandAdvice = / Run `openclaw [^`]*`[^.]*\./g

/** Refusals with a reason that OpenClaw writes only to its log. */
const knownRefusals: Partial<Record<string, { code: ErrorCode; text: string }>> = {
  'invalid request': { code: 'invalid_media', text: errorTexts.mediaRefused },
  'invalid tool configuration': { code: 'invalid_value', text: errorTexts.toolRefused },
}

/** Whether a 429 is the gateway's own for too many bad tokens. A 429 of the provider comes in a response object. */
const isLockout = (status: number | undefined, message: string | null): boolean =>
  status === 429 && /failed authentication/i.test(message ?? '')
