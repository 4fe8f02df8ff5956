import type { ModelProvider } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { findUsedUp } from '#errors/budget-texts.ts'
import { modelCallBroke } from '#openclaw/gateway/failed-turn.ts'
import { vendorMessage, vendorRetryAfter } from '#openclaw/models/vendor-message.ts'
import { errorTexts } from './error-texts.ts'

/** A failed turn, as OpenClaw reports it. */
interface FailedTurn {
  /** The status of OpenClaw's answer; undefined in a stream, which has none. */
  status: number | undefined
  code: string
  message: string
  /** Whether the agent has acted in the turn, or may have. */
  hasActed: boolean
}

/** The texts that OpenClaw writes in place of the provider's message. */
const withoutWords = {
  overloaded: 'upstream provider overloaded',
  timeout: 'upstream provider timeout',
  error: 'upstream provider error',
}

/** OpenClaw's message that it pauses a refused key. */
const onHold = / is temporarily disabled after a provider auth\/billing failure\. Retry after about (\d+) minute/

/** OpenClaw's message that a provider found a conversation too long. */
const overflow = /^Context overflow\b/

/** OpenAI's message for an account without credit, which OpenClaw reports as a rate limit. */
const usedUp = /exceeded your current quota/i

/** OpenClaw's message in the session for a failure whose kind it does not know. */
const failedWith = /\bLLM request failed \(HTTP (\d{3})\)/

/** The provider's status in OpenClaw's message. */
const statusIn = (message: string): number | undefined => {
  const [, status] = /^(\d{3})\b/.exec(message) ?? failedWith.exec(message) ?? []
  return status === undefined ? undefined : Number(status)
}

const refusalCodes: readonly string[] = ['authentication_error', 'permission_error']

/**
 * The failure of a turn caused by the model provider; null for any other. It advises clients not to repeat the turn,
 * unless no model was called, or the provider's rate limit refused its first request.
 */
export function providerFailure(
  provider: ModelProvider,
  { status, code, message, hasActed }: FailedTurn,
): AppError | null {
  const providerStatus = statusIn(message) ?? status
  const says = errorTexts.providerSays(vendorMessage(message))
  const isInvalid = code === 'invalid_request_error'
  const doNotRetry = true
  const usedUpBudget = findUsedUp(message)
  if (usedUpBudget !== null) return new AppError('budget_exceeded', usedUpBudget, { doNotRetry })
  if (code === 'insufficient_quota' || (provider === 'openai' && usedUp.test(message))) {
    return new AppError('provider_no_credit', errorTexts.noCredit(provider) + says, { doNotRetry })
  }
  if (refusalCodes.includes(code) || status === 401 || status === 403) {
    return new AppError('provider_key_refused', errorTexts.keyRefused(provider) + says, { doNotRetry })
  }
  if (code === 'rate_limit_error' || status === 429) {
    const retryAfterSeconds = vendorRetryAfter(message)
    const text = errorTexts.providerRateLimited(provider, retryAfterSeconds) + says
    const retryAfter = retryAfterSeconds === undefined ? {} : { retryAfterSeconds }
    return new AppError('provider_rate_limited', text, { ...retryAfter, doNotRetry: hasActed })
  }
  const [, minutes] = onHold.exec(message) ?? []
  if (minutes !== undefined) {
    const retryAfterSeconds = Number(minutes) * 60
    return new AppError('provider_key_on_hold', errorTexts.keyOnHold(provider, minutes), { retryAfterSeconds })
  }
  if (message === withoutWords.overloaded) {
    return new AppError('provider_error', errorTexts.providerOverloaded(provider), { doNotRetry })
  }
  if (message === withoutWords.timeout || modelCallBroke.test(message)) {
    return new AppError('provider_error', errorTexts.providerUnreachable(provider), { doNotRetry })
  }
  if (providerStatus === 413 || overflow.test(message)) {
    return new AppError('provider_request_too_large', errorTexts.providerRequestTooLarge(provider), { doNotRetry })
  }
  if (message === withoutWords.error || failedWith.test(message)) {
    return new AppError('provider_error', errorTexts.providerFailed(provider), { doNotRetry })
  }
  if (isInvalid && statusIn(message) === 404) {
    return new AppError('model_not_found', errorTexts.modelNotFound(provider) + says, { doNotRetry, param: 'model' })
  }
  if (isInvalid && statusIn(message) !== undefined) {
    return new AppError('provider_refused_request', errorTexts.providerRefusedRequest(provider) + says, { doNotRetry })
  }
  return null
}
