import { failures } from '#http/openapi.ts'

/** Maximum size of a request for a turn. */
export const maxTurnBytes = 20 * 1024 * 1024

/** The common options of all routes that run a turn. */
export const turnRouteConfig = {
  access: 'interact',
  inFlight: 'turns',
  openaiErrors: true,
  handlesRefusedKey: true,
  event: null,
  idempotency: 'none', // a turn takes long, and its answer may be a stream
} as const
export const turnFailures = failures(400, 402, 404, 409, 413, 502, 504)
export const turnBehaviour =
  'Answers when the agent has finished, after up to 15 minutes, or as a stream. 409 unless the instance is ' +
  '`running` or wakes, and 402 while a hard budget is used up. 502 and 504 are failures of the gateway or the provider. ' +
  '`x-should-retry: false` says that a turn may have begun. Turns of one session run one after the other, in the ' +
  'order in which they came; up to 100 wait, and a further one is a 429. A stream that waits begins with ' +
  '`response.queued`.'
