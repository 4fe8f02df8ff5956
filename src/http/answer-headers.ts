/** The documented headers of answers. */
export const headers = {
  RequestId: {
    description:
      'The id of this request: the one that you sent in `x-request-id`, or a new one. Name it when you ask for help.',
    schema: { type: 'string' },
    example: '019a8d0e-6a53-7c9e-9c0d-2f1f5d3f8b11',
  },
  RateLimit: {
    description: 'The number of requests left in the current window (`r`), and the seconds until it ends (`t`).',
    schema: { type: 'string' },
  },
  RateLimitPolicy: {
    description: 'The number of requests allowed (`q`) in a window of seconds (`w`).',
    schema: { type: 'string' },
  },
  Link: {
    description: 'The address of the next page, with `rel="next"`; absent on the last page.',
    schema: { type: 'string' },
    example: '<https://chowder.example.com/v1/instances?limit=50&cursor=MDE5>; rel="next"',
  },
  NextCursor: {
    description: 'The `cursor` of the next page; absent on the last page.',
    schema: { type: 'string' },
    example: 'MDE5',
  },
  IdempotentReplayed: {
    description:
      '`true` when an earlier call with the same `Idempotency-Key` got this answer: this call changed nothing.',
    schema: { type: 'string', const: 'true' },
  },
  Challenge: {
    description: 'How to authenticate: `Bearer`, with `error="invalid_token"` for a key that was refused.',
    schema: { type: 'string' },
    example: 'Bearer error="invalid_token"',
  },
  RetryAfter: { description: 'The seconds to wait before you repeat the request.', schema: { type: 'integer' } },
}

const headerRef = (name: string) => ({ $ref: `#/components/headers/${name}` })

/** References to them, by the kind of answer. */
export const answerHeaders = {
  every: { 'x-request-id': headerRef('RequestId') },
  limited: { RateLimit: headerRef('RateLimit'), 'RateLimit-Policy': headerRef('RateLimitPolicy') },
  challenge: { 'WWW-Authenticate': headerRef('Challenge') },
  retryAfter: { 'Retry-After': headerRef('RetryAfter') },
  paged: { Link: headerRef('Link'), 'X-Next-Cursor': headerRef('NextCursor') },
  replayable: { 'Idempotent-Replayed': headerRef('IdempotentReplayed') },
}
