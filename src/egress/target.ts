import { readHost, readPort } from './hosts.ts'
import type { Destination } from './policy.ts'

const httpPort = 80

/** What a client asks of the proxy: a tunnel to a destination, or one request to it without TLS. */
export interface Target extends Destination {
  /** The path with the query of a request, and its Host header; null for a tunnel. */
  request: { path: string; hostHeader: string } | null
}

/** Reads `host:port` of a CONNECT. */
function readAuthority(text: string): Target | null {
  const [, written = '', writtenPort = ''] = /^(\[[^\]]+\]|[^:]+):([0-9]+)$/.exec(text) ?? []
  const host = readHost(written)
  const port = readPort(writtenPort)
  return host === null || port === null ? null : { host, port, request: null }
}

/** Reads the target of a request line; null for what a proxy does not serve. */
export function readTarget(method: string, url: string): Target | null {
  if (method === 'CONNECT') return readAuthority(url)
  if (!URL.canParse(url)) return null
  const { protocol, hostname, port, host: hostHeader, pathname, search } = new URL(url)
  const host = readHost(hostname)
  if (protocol !== 'http:' || host === null) return null
  return { host, port: port === '' ? httpPort : Number(port), request: { path: pathname + search, hostHeader } }
}
