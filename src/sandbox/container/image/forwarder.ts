import { createHash, timingSafeEqual } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { createServer, type IncomingMessage, request, type Server } from 'node:http'
import type { Duplex } from 'node:stream'

/** The requests that pass to the gateway. */
export interface Admission {
  /** The JSON file with the gateway's token, below the sandbox's own folder, and the keys that lead to the token. */
  tokenFile: string
  tokenKeys: readonly string[]
  /** Paths that need no token for a GET. */
  openPaths: readonly string[]
}

const host = '127.0.0.1'
/** The limit of all clients together: this process has little memory. */
const maxConnections = 256
const limits = { maxHeaderSize: 8192, headersTimeout: 5000, connectionsCheckingInterval: 1000 }
/** Hop-by-hop headers. */
const hopByHop = new Set([
  'connection',
  'expect',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authorization',
  'proxy-connection',
  'te',
  'trailer',
  'upgrade',
])
const refusal = JSON.stringify({ error: { message: "this port needs the gateway's token", type: 'forbidden' } })
const noAnswer = JSON.stringify({ error: { message: 'the gateway does not answer', type: 'unavailable' } })

const digest = (text: string) => createHash('sha256').update(text).digest()

/** Reads the token for each request, because the gateway's token changes with each start. null if there is none. */
async function tokenIn({ tokenFile, tokenKeys }: Admission): Promise<string | null> {
  try {
    let value = JSON.parse(await readFile(tokenFile, 'utf8'))
    for (const key of tokenKeys) value = value[key]
    return typeof value === 'string' && value !== '' ? value : null
  } catch {
    return null
  }
}

async function hasToken({ headers }: IncomingMessage, admission: Admission): Promise<boolean> {
  const [, given] = /^Bearer (.+)$/i.exec(headers.authorization ?? '') ?? []
  const token = given && (await tokenIn(admission))
  return Boolean(given && token && timingSafeEqual(digest(given), digest(token)))
}

const isOpen = ({ method, url }: IncomingMessage, { openPaths }: Admission) =>
  method === 'GET' && openPaths.includes(url ?? '')

/** The unchanged header lines, except hop-by-hop ones and those in `without`. */
function headerLines({ rawHeaders }: IncomingMessage, without: readonly string[] = []): string[] {
  const lines: string[] = []
  for (let index = 0; index < rawHeaders.length; index += 2) {
    const [name, value] = rawHeaders.slice(index, index + 2) as [string, string]
    const isLeftOut = hopByHop.has(name.toLowerCase()) || without.includes(name.toLowerCase())
    if (!isLeftOut) lines.push(name, value)
  }
  return lines
}

/** A request with the gateway's own address as its host: a gateway gives callers of other hosts no rights. */
const toGateway = (incoming: IncomingMessage, port: number, headers: string[]) =>
  request({
    host,
    port,
    method: incoming.method ?? 'GET',
    path: incoming.url ?? '/',
    headers: ['Host', `${host}:${port}`, ...headers],
    agent: false,
  })

function refuse(socket: Duplex, status: string, body: string): void {
  socket.end(
    `HTTP/1.1 ${status}\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\nconnection: close\r\n\r\n${body}`,
    () => socket.destroy(),
  )
}

function connectBoth(one: Duplex, other: Duplex): void {
  for (const [from, to] of [
    [one, other],
    [other, one],
  ] as const) {
    from.on('error', () => to.destroy())
    from.on('close', () => to.destroy())
    from.pipe(to)
  }
}

/**
 * Creates the server through which others reach a gateway. The gateway listens on its own loopback, and treats every
 * caller there as its owner. Each request is checked: 403 without permission, and 502 when the gateway does not listen.
 */
export function createForwarder(gatewayPort: number, admission: Admission): Server {
  const server = createServer(limits, async (incoming, response) => {
    const isPublic = isOpen(incoming, admission)
    if (!isPublic && !(await hasToken(incoming, admission))) {
      response.writeHead(403, { 'content-type': 'application/json', connection: 'close' }).end(refusal)
      return
    }
    const outgoing = toGateway(incoming, gatewayPort, headerLines(incoming, ['host']))
    outgoing.on('response', (answer) => {
      answer.on('error', () => response.destroy())
      response.writeHead(answer.statusCode ?? 502, answer.statusMessage, headerLines(answer))
      response.flushHeaders()
      answer.pipe(response)
    })
    outgoing.on('error', () => {
      if (response.headersSent) response.destroy()
      else response.writeHead(502, { 'content-type': 'application/json', connection: 'close' }).end(noAnswer)
    })
    incoming.on('error', () => outgoing.destroy())
    response.on('close', () => outgoing.destroy())
    if (isPublic) outgoing.end(() => incoming.resume())
    else incoming.pipe(outgoing)
  })
  server.maxConnections = maxConnections

  server.on('upgrade', async (incoming, socket, head) => {
    socket.on('error', () => socket.destroy())
    if (!(await hasToken(incoming, admission))) return refuse(socket, '403 Forbidden', refusal)
    // The gateway expects the token in the first message, not in a header.
    const lines = headerLines(incoming, ['host', 'authorization'])
    const outgoing = toGateway(incoming, gatewayPort, [
      ...lines,
      'Connection',
      'Upgrade',
      'Upgrade',
      incoming.headers.upgrade ?? '',
    ])
    socket.on('close', () => outgoing.destroy())
    outgoing.on('upgrade', (answer, gateway, first) => {
      const lines = headerLines(answer, [])
      const named = lines.flatMap((name, index) => (index % 2 === 0 ? [`${name}: ${lines[index + 1]}`] : []))
      const upgraded = ['Connection: Upgrade', `Upgrade: ${answer.headers.upgrade}`]
      socket.write(`${['HTTP/1.1 101 Switching Protocols', ...named, ...upgraded].join('\r\n')}\r\n\r\n`)
      socket.write(first)
      gateway.write(head)
      connectBoth(socket, gateway)
    })
    outgoing.on('response', (answer) => {
      answer.resume()
      refuse(socket, `${answer.statusCode} ${answer.statusMessage}`, noAnswer)
    })
    outgoing.on('error', () => refuse(socket, '502 Bad Gateway', noAnswer))
    outgoing.end()
  })
  return server
}
