/** What answers carry beside their bodies, for the document. */
export const headers = {
  RequestId: {
    description:
      'The id of this request: the one you sent in `x-request-id`, else a new one. Name it when you ask for help.',
    schema: { type: 'string' },
    example: '019a8d0e-6a53-7c9e-9c0d-2f1f5d3f8b11',
  },
  RateLimit: {
    description: 'How many more requests are taken in the current window (`r`), and in how many seconds it ends (`t`).',
    schema: { type: 'string' },
  },
  RateLimitPolicy: {
    description: 'How many requests are taken (`q`) in a window of how many seconds (`w`).',
    schema: { type: 'string' },
  },
  Link: {
    description: 'Where the next page is, with `rel="next"`; absent on the last one.',
    schema: { type: 'string' },
    example: '<https://chowder.example.com/v1/instances?limit=50&cursor=MDE5>; rel="next"',
  },
  IdempotentReplayed: {
    description:
      '`true` when this is the answer to an earlier call with the same `Idempotency-Key`: nothing was created now.',
    schema: { type: 'string', const: 'true' },
  },
  RetryAfter: { description: 'Seconds to wait before the request is worth repeating.', schema: { type: 'integer' } },
}

const headerRef = (name: string) => ({ $ref: `#/components/headers/${name}` })

/** References to them, by the answers that have them. */
export const answerHeaders = {
  every: { 'x-request-id': headerRef('RequestId') },
  limited: { RateLimit: headerRef('RateLimit'), 'RateLimit-Policy': headerRef('RateLimitPolicy') },
  retryAfter: { 'Retry-After': headerRef('RetryAfter') },
  paged: { Link: headerRef('Link') },
  replayable: { 'Idempotent-Replayed': headerRef('IdempotentReplayed') },
}
