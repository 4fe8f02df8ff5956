import { describe, expect, test } from 'vitest'
import { gatewayError } from '#turns/gateway-errors.ts'

const beforeRun = (message: string, type = 'invalid_request_error') => ({ error: { message, type } })
const during = (code: string, message: string) => ({
  object: 'response',
  status: 'failed',
  output: [],
  error: { code, message },
})
const judge = (status: number | undefined, body: unknown, turnLeft: { hasActed?: boolean; note?: string } = {}) => {
  const { error, refusedChowder } = gatewayError('anthropic', { status, body, ...turnLeft })
  const { code, kind, message, doNotRetry, retryAfterSeconds } = error
  return { code, kind, message, doNotRetry, retryAfterSeconds, refusedChowder }
}

describe('A21: a failure of an agent that answers in place of its gateway', () => {
  test.each([' Run `openclaw ', ' Run `openclaw x`', '; Retry-After: 1', 'sk-', ' [code=a', '429 {'])(
    'is told within 10 ms when it is %j without an end',
    (piece) => {
      const text = piece.repeat((256 * 1024) / piece.length)
      const times = Array.from({ length: 3 }, () => {
        const begun = performance.now()
        for (const code of ['invalid_request_error', 'rate_limit_error', text]) judge(undefined, during(code, text))
        return performance.now() - begun
      })
      expect(Math.min(...times)).toBeLessThan(10)
    },
  )

  test('is told when its code and message are no texts', () => {
    const odd = { toString: 1, valueOf: [] } as unknown as string
    expect(judge(undefined, during(odd, odd))).toMatchObject({ kind: 'gateway_unreachable' })
  })
})

describe('a refusal of a gateway before the turn', () => {
  test.each([
    [400, 'invalid'],
    [413, 'too_large'],
    [422, 'unprocessable'],
    [429, 'rate_limited'],
  ])('with %i keeps its status and message', (status, kind) => {
    expect(judge(status, beforeRun('Unrecognized key: "foo"'))).toMatchObject({
      kind,
      message: 'Unrecognized key: "foo"',
      refusedChowder: false,
    })
  })

  test('without a readable message has a fixed text', () => {
    for (const body of [undefined, null, 7, 'text', [], { error: 'x' }, { error: { message: 5 } }, beforeRun('')]) {
      expect(judge(400, body).message).toBe('The gateway refused the request.')
    }
  })

  test('has a message of at most 1,000 characters', () => {
    expect(judge(400, beforeRun('x'.repeat(60_000))).message).toHaveLength(1000)
  })

  test('passes on the seconds of Retry-After, and no other value of it', () => {
    const seconds = (retryAfter: string) =>
      gatewayError('openai', { status: 429, body: beforeRun('slow'), retryAfter }).error.retryAfterSeconds
    expect(seconds('12')).toBe(12)
    for (const odd of ['', '-1', 'Wed, 21 Oct 2026 07:28:00 GMT', '1e9', '12\r\nx: y'])
      expect(seconds(odd)).toBeUndefined()
  })

  test('of an unknown model names it, without advice to run a command', () => {
    const message = 'Unknown model: anthropic/nope. Run `openclaw models list --refresh` to see the models.'
    for (const body of [beforeRun(message), during('invalid_request_error', message)]) {
      expect(judge(404, body)).toMatchObject({
        code: 'model_not_found',
        kind: 'invalid',
        message: 'Unknown model: anthropic/nope.',
      })
    }
  })

  test.each([401, 403])('of Chowder’s own token (%i before the turn) is a 502 of its own kind', (status) => {
    expect(judge(status, beforeRun('Unauthorized', 'unauthorized'))).toMatchObject({
      code: 'gateway_unreachable',
      refusedChowder: true,
      doNotRetry: true,
    })
  })

  test('after too many bad tokens is not a rate limit of the caller', () => {
    const body = beforeRun('Too many failed authentication attempts. Please try again later.', 'rate_limited')
    expect(judge(429, body)).toMatchObject({ code: 'gateway_unreachable', refusedChowder: true })
  })

  test.each([500, 502, 503, 504, 404, 405, 408, 410, 418, 302, 204])(
    'with %i is a 502 that names the status',
    (status) => {
      expect(judge(status, 'Not Found')).toMatchObject({
        code: 'gateway_unreachable',
        message: `The gateway of this instance failed with ${status}.`,
        doNotRetry: false,
        refusedChowder: false,
      })
    },
  )
})

describe('a failure of the provider', () => {
  const json = (type: string, message: string) => JSON.stringify({ error: { message, type }, type: 'error' })

  // The answers of OpenClaw 2026.9.6 to what the provider answered.
  test.each([
    [401, 'authentication_error', `401: ${json('authentication_error', 'invalid x-api-key')}`, 'provider_key_refused'],
    [403, 'permission_error', `403: ${json('permission_error', 'not for you')}`, 'provider_key_refused'],
    [500, 'authentication_error', '401', 'provider_key_refused'],
    [402, 'insufficient_quota', `400: ${json('invalid_request_error', 'credit is too low')}`, 'provider_no_credit'],
    [429, 'rate_limit_error', `429: ${json('rate_limit_error', 'slow down')}`, 'provider_rate_limited'],
    [529, 'api_error', 'upstream provider overloaded', 'provider_error'],
    [502, 'api_error', 'upstream provider error', 'provider_error'],
    [408, 'api_error', 'upstream provider timeout', 'provider_error'],
    [504, 'api_error', 'upstream provider timeout', 'provider_error'],
    [413, 'api_error', 'upstream provider error', 'provider_request_too_large'],
    [404, 'invalid_request_error', `404: ${json('not_found_error', 'model: nope')}`, 'model_not_found'],
    [400, 'invalid_request_error', `400: ${json('invalid_request_error', 'too long')}`, 'provider_refused_request'],
  ])('as %i %s names the provider, has a code of its own, and is not repeated', (status, code, message, expected) => {
    const judged = judge(status, during(code, message))
    expect(judged).toMatchObject({ code: expected, doNotRetry: true, refusedChowder: false })
    expect(judged.message).toContain('model provider (anthropic)')
    expect(judged.message).not.toMatch(/[{}]|gateway|upstream/)
  })

  test.each([
    ['rate_limit_error', '429 slow down; Retry-After: 3 seconds', 'provider_rate_limited'],
    ['invalid_request_error', '404 no such model', 'model_not_found'],
    ['invalid_request_error', '400: no', 'provider_refused_request'],
    ['authentication_error', '401 no', 'provider_key_refused'],
    ['api_error', 'upstream provider error', 'provider_error'],
  ])('within a stream, which has no status, is the same: %s', (code, message, expected) => {
    expect(judge(undefined, during(code, message)).code).toBe(expected)
  })

  test('has the words of the provider, without its JSON and without keys', () => {
    const said = (message: string) => judge(401, during('authentication_error', message)).message
    expect(said(`401: ${json('x', 'Incorrect API key provided: sk-ant-a***8Qa.')}`)).toMatch(
      /It says: “Incorrect API .*…”$/,
    )
    expect(said('401: Google Generative AI API error (401): no entry [code=UNAUTHENTICATED]')).toMatch(/“no entry”$/)
    for (const mute of ['401', '401: {}', '401: <html>nginx</html>', '401: {"error":{"message":7}}'])
      expect(said(mute)).not.toContain('It says')
  })

  test('keeps the Retry-After behind long words of the provider, which are shortened', () => {
    const message = `429: ${json('rate_limit_error', 'x'.repeat(3000))}; Retry-After: 3 seconds`
    const { retryAfterSeconds, message: text } = judge(429, during('rate_limit_error', message))
    expect([retryAfterSeconds, text.length < 800]).toEqual([3, true])
    expect(text).toContain(`“${'x'.repeat(500)}”`)
  })

  test('over the quota of an account at OpenAI is told from a rate limit', () => {
    const quota = during('rate_limit_error', '429 You exceeded your current quota, please check your plan and billing.')
    const { error } = gatewayError('openai', { status: 429, body: quota })
    expect(error.code).toBe('provider_no_credit')
    expect(judge(429, quota).code).toBe('provider_rate_limited')
  })

  test('over a rate limit keeps the Retry-After of the provider, and may be repeated while the agent has not acted', () => {
    const limited = (message: string, hasActed: boolean) =>
      judge(429, during('rate_limit_error', message), { hasActed })
    expect(limited('429 slow down; Retry-After: 3 seconds', false)).toMatchObject({
      kind: 'rate_limited',
      retryAfterSeconds: 3,
      doNotRetry: false,
      message: expect.stringMatching(/Try again in 3 s\. It says: “slow down”$/),
    })
    expect(limited('429 slow down', true)).toMatchObject({ retryAfterSeconds: undefined, doNotRetry: true })
  })

  const unexplained = during('api_error', 'internal error')

  test('that OpenClaw explains only in the session has the reason that is there', () => {
    const overflow = 'Context overflow: this conversation is too large for the model. Try /compact.'
    expect(judge(500, unexplained, { note: overflow })).toMatchObject({ code: 'provider_request_too_large' })
    const hold =
      'This turn ended before a reply: Inline API key for provider "anthropic" is temporarily disabled after a ' +
      'provider auth/billing failure. Retry after about 10 minutes, or switch to a different auth profile/API key.'
    for (const status of [500, undefined]) {
      expect(judge(status, unexplained, { note: hold })).toMatchObject({
        code: 'provider_key_on_hold',
        kind: 'unavailable',
        retryAfterSeconds: 600,
        doNotRetry: false,
        message: expect.stringMatching(/^The model provider \(anthropic\) refused .* within 10 min\./),
      })
    }
  })

  test('that is not explained anywhere is not called a refused key', () => {
    for (const note of [undefined, 'SessionWorkStartChangedError', '/home/secret/path']) {
      expect(judge(500, unexplained, note === undefined ? {} : { note })).toMatchObject({
        code: 'gateway_unreachable',
        message: 'The gateway of this instance failed with 500: internal error',
        doNotRetry: true,
      })
    }
  })
})
