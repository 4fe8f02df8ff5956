import { Agent, type Dispatcher, Pool } from 'undici'
import type { AppError } from '#errors/app-error.ts'
import { gatewayUnreachable } from '#instances/gateway/errors.ts'
import type { Endpoint } from '#sandbox/driver.ts'

/** Codes of Node and undici for a failed connection: the gateway has not seen the request. */
const neverConnected = new Set([
  'ECONNREFUSED',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'ENOENT',
  'ENOTFOUND',
  'UND_ERR_CONNECT_TIMEOUT',
])

const isNeverConnected = (error: unknown): boolean =>
  error instanceof AggregateError
    ? error.errors.every(isNeverConnected)
    : error instanceof Error && 'code' in error && neverConnected.has(String(error.code))

/** The error for a failed request to a gateway. It advises against a retry unless the gateway never got the request. */
export const unreachable = (cause: unknown): AppError =>
  gatewayUnreachable({ cause, doNotRetry: !isNeverConnected(cause) })

const unixSuffix = '.unix'

// The origin carries the path of a Unix socket as its host name, so that one Agent pools both kinds of connections.
function createPool(origin: string | URL, options: object): Dispatcher {
  const { hostname } = new URL(origin)
  if (!hostname.endsWith(unixSuffix)) return new Pool(origin, options)
  const socketPath = Buffer.from(hostname.slice(0, -unixSuffix.length), 'hex').toString()
  return new Pool('http://localhost', { ...options, socketPath })
}

function originOf(endpoint: Endpoint): string {
  if (endpoint.kind === 'unix') return `http://${Buffer.from(endpoint.path).toString('hex')}${unixSuffix}`
  const host = endpoint.host.includes(':') ? `[${endpoint.host}]` : endpoint.host
  return `http://${host}:${endpoint.port}`
}

interface GatewayPool {
  /**
   * Sends a turn to a gateway, and resolves when the headers of its answer have arrived. It has no timeout: use the
   * signal. Throws errors of undici, and the signal's reason.
   */
  post(
    endpoint: Endpoint,
    headers: Record<string, string>,
    body: string | Uint8Array,
    signal: AbortSignal,
  ): Promise<Dispatcher.ResponseData>
  close(): Promise<void>
}

/**
 * How long a connection stays open for another turn, in ms. A gateway that is then busy for seconds closes idle
 * connections (Node.js does after 5 s) before it reads the turns that were sent on them.
 */
const reuseWithinMs = 50

/** Opens connections to gateways, and reuses them for turns that follow at once. */
export function createGatewayPool(): GatewayPool {
  const agent = new Agent({
    factory: createPool,
    keepAliveTimeout: reuseWithinMs,
    keepAliveMaxTimeout: reuseWithinMs,
    bodyTimeout: 0,
    headersTimeout: 0,
    connect: { timeout: 5_000 },
  })
  return {
    post: (endpoint, headers, body, signal) =>
      agent.request({
        origin: originOf(endpoint),
        path: '/v1/responses',
        method: 'POST',
        headers: {
          ...(endpoint.kind === 'tcp' ? endpoint.headers : {}),
          ...headers,
          'content-type': 'application/json',
        },
        body,
        signal,
      }),
    close: () => agent.destroy(),
  }
}
