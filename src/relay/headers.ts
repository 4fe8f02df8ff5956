import type { IncomingHttpHeaders } from 'node:http'

/**
 * The headers of a client that a vendor may get. They exclude those of the connection, of other hosts on the way, and
 * keys.
 */
const requestHeaders = new Set([
  'accept',
  'accept-language',
  'content-length',
  'content-type',
  'idempotency-key',
  'session-id',
  'session_id',
  'user-agent',
  'x-client-request-id',
  'x-goog-api-client',
  'x-goog-request-params',
  'x-session-affinity',
])
const requestPrefixes = ['anthropic-', 'openai-', 'x-stainless-'] as const

/** The headers of a vendor that a client may get: limits, ids, and the encoding of the body. No cookies. */
const answerHeaders = new Set([
  'cache-control',
  'cf-ray',
  'content-encoding',
  'content-length',
  'content-type',
  'date',
  'request-id',
  'retry-after',
  'retry-after-ms',
  'server-timing',
  'www-authenticate',
  'x-request-id',
  'x-should-retry',
])
const answerPrefixes = ['anthropic-', 'openai-', 'x-ratelimit-', 'x-goog-', 'x-gemini-'] as const

type Headers = Record<string, string | string[]>

function pick(from: IncomingHttpHeaders, names: ReadonlySet<string>, prefixes: readonly string[]): Headers {
  const picked: Headers = {}
  for (const name in from) {
    const value = from[name]
    if (value === undefined) continue
    if (names.has(name) || prefixes.some((prefix) => name.startsWith(prefix))) picked[name] = value
  }
  return picked
}

/**
 * The headers of a request for its vendor. They ask for an uncompressed answer: its bytes can be read as they pass, and
 * no compressor on the way delays a stream.
 */
export function toVendor(headers: IncomingHttpHeaders, [keyName, key]: [name: string, value: string]): Headers {
  return { ...pick(headers, requestHeaders, requestPrefixes), 'accept-encoding': 'identity', [keyName]: key }
}

/** The headers of a vendor's answer for the client. */
export const toClient = (headers: IncomingHttpHeaders): Headers => pick(headers, answerHeaders, answerPrefixes)

/** The pause that a vendor asks for, in ms; null if it names none. */
export function retryAfterMs(headers: IncomingHttpHeaders): number | null {
  const ms = Number(headers['retry-after-ms'] ?? Number.NaN)
  if (ms >= 0) return ms
  const text = headers['retry-after']
  if (text === undefined) return null
  const waitMs = /^\d+(\.\d+)?$/.test(text) ? Number(text) * 1000 : Date.parse(text) - Date.now()
  return Number.isNaN(waitMs) ? null : Math.max(0, waitMs)
}
