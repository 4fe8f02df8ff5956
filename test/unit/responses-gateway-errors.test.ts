import { describe, expect, test } from 'vitest'
import { gatewayError } from '#api/responses/turns/gateway-errors.ts'

const beforeRun = (message: string, type = 'invalid_request_error') => ({ error: { message, type } })
const during = (code: string, message: string) => ({
  object: 'response',
  status: 'failed',
  output: [],
  error: { code, message },
})
const judge = (status: number, body: unknown, earlierRefusal?: string) => {
  const { error, refused } = gatewayError('anthropic', { status, body }, earlierRefusal)
  return { kind: error.kind, message: error.message, doNotRetry: error.doNotRetry, refused }
}

describe('a refusal of a gateway', () => {
  test.each([
    [400, 'invalid'],
    [413, 'too_large'],
    [422, 'unprocessable'],
    [429, 'rate_limited'],
  ])('with %i keeps its status and message', (status, kind) => {
    expect(judge(status, beforeRun('Unrecognized key: "foo"'))).toMatchObject({
      kind,
      message: 'Unrecognized key: "foo"',
    })
    expect(judge(status, during('rate_limit_error', '429: slow down'))).toMatchObject({
      kind,
      message: '429: slow down',
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

  test('of an unknown model is an error of the caller', () => {
    const body = during('invalid_request_error', 'Unknown model: anthropic/nope')
    expect(judge(404, body)).toMatchObject({ kind: 'invalid', message: 'Unknown model: anthropic/nope' })
  })

  test.each([401, 403])('of Chowder’s own token (%i before the turn) is a 502 of its own kind', (status) => {
    expect(judge(status, beforeRun('Unauthorized', 'unauthorized'))).toMatchObject({
      kind: 'gateway_unreachable',
      refused: 'chowder',
      doNotRetry: true,
    })
  })

  test('after too many bad tokens is not a rate limit of the caller', () => {
    const body = beforeRun('Too many failed authentication attempts. Please try again later.', 'rate_limited')
    expect(judge(429, body)).toMatchObject({ kind: 'gateway_unreachable', refused: 'chowder' })
  })
})

describe('a refusal of a provider', () => {
  const refusedKey = {
    kind: 'gateway_unreachable',
    message: expect.stringMatching(/^The model provider \(anthropic\) refused your organization's API key\. /),
    doNotRetry: true,
  }

  test.each([
    [401, 'authentication_error'],
    [403, 'permission_error'],
    [401, 'something_new'],
    [400, 'authentication_error'],
    [500, 'authentication_error'],
  ])('as %i %s names the provider and the organization’s key', (status, code) => {
    const judged = judge(status, during(code, '401: {"error":"invalid x-api-key sk-ant-secret"}'))
    expect(judged).toMatchObject({ ...refusedKey, refused: 'provider' })
    expect(judged.message).not.toContain('sk-ant')
  })

  test('explains the `internal error` of the gateway within the next minute', () => {
    const refusal = judge(401, during('authentication_error', '401')).message
    expect(judge(500, during('api_error', 'internal error'), refusal)).toMatchObject(refusedKey)
  })

  test('does not explain an `internal error` without a refusal before it, or other failures after it', () => {
    expect(judge(500, during('api_error', 'internal error')).message).toContain('failed with 500: internal error')
    expect(judge(502, during('api_error', 'upstream provider error'), 'earlier').message).toContain('failed with 502')
  })

  test('over billing names billing, and is not Chowder’s own 402', () => {
    expect(judge(402, during('insufficient_quota', 'no credit'))).toMatchObject({
      kind: 'gateway_unreachable',
      message: expect.stringContaining('billing'),
      refused: 'provider',
    })
  })
})

describe('any other failure', () => {
  test.each([500, 502, 503, 504, 404, 405, 408, 410, 418, 302, 204])(
    'with %i is a 502 that names the status',
    (status) => {
      expect(judge(status, 'Not Found')).toMatchObject({
        kind: 'gateway_unreachable',
        message: `The gateway of this instance failed with ${status}.`,
        doNotRetry: false,
        refused: null,
      })
    },
  )

  test('must not be retried once the turn has begun', () => {
    expect(judge(502, during('api_error', 'upstream provider error'))).toMatchObject({
      message: 'The gateway of this instance failed with 502: upstream provider error',
      doNotRetry: true,
    })
  })
})
