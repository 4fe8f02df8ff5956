import { request as ask, type IncomingMessage, type ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import { pipeline } from 'node:stream/promises'

/** Hop-by-hop headers (RFC 9110, 7.6.1). */
const ofConnection = new Set([
  'connection',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authorization',
  'proxy-connection',
  'te',
  'trailer',
  'upgrade',
])

/** The headers that a proxy passes on, as a list of names and values. */
function passing(rawHeaders: readonly string[], connection: string | undefined, without: readonly string[]): string[] {
  const named = (connection ?? '')
    .toLowerCase()
    .split(',')
    .map((name) => name.trim())
  const isLeftOut = (name: string) => ofConnection.has(name) || named.includes(name) || without.includes(name)
  const passed: string[] = []
  for (let at = 0; at + 1 < rawHeaders.length; at += 2) {
    const [name = '', value = ''] = [rawHeaders[at], rawHeaders[at + 1]]
    if (!isLeftOut(name.toLowerCase())) passed.push(name, value)
  }
  return passed
}

/**
 * Sends one request over a connection to its host, and the answer back, as they come. Follows no redirect: the client
 * asks the proxy again. Resolves at the end of the answer. Rejects when either side breaks off; the answer may have
 * begun.
 */
export async function forwardRequest(
  request: IncomingMessage,
  response: ServerResponse,
  { socket, path, hostHeader }: { socket: Socket; path: string; hostHeader: string },
): Promise<void> {
  const headers = [
    ...['Host', hostHeader],
    ...passing(request.rawHeaders, request.headers.connection, ['host', 'expect']),
    ...['Connection', 'close'],
  ]
  const asked = ask({ method: request.method, path, headers, setHost: false, createConnection: () => socket })
  const { promise: answer, resolve, reject } = Promise.withResolvers<IncomingMessage>()
  asked.on('response', resolve)
  asked.on('error', reject)
  request.on('error', () => asked.destroy())
  request.pipe(asked)
  try {
    const { statusCode = 502, statusMessage, rawHeaders, headers: answered } = await answer
    const passed = passing(rawHeaders, answered.connection, ['transfer-encoding'])
    response.writeHead(statusCode, statusMessage ?? '', passed)
    response.flushHeaders() // a stream of events may wait long for its first one
    await pipeline(await answer, response)
  } finally {
    asked.destroy()
  }
}
