import { createHash, timingSafeEqual } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { createServer, type IncomingMessage, request, type Server } from 'node:http'
import type { Duplex } from 'node:stream'

/** Who is let through to the gateway. */
export interface Admission {
  /** The JSON file that holds the gateway's token, below the sandbox's own folder, and the keys that lead to it. */
  tokenFile: string
  tokenKeys: readonly string[]
  /** Paths that anybody may GET. */
  openPaths: readonly string[]
}

const host = '127.0.0.1'
/** Of one address, and of what each may hold: neighbours share the memory of this process with the control plane. */
const maxConnections = 256
const limits = { maxHeaderSize: 8192, headersTimeout: 5000, connectionsCheckingInterval: 1000 }
/** Of one connection only. */
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
const silence = JSON.stringify({ error: { message: 'the gateway does not answer', type: 'unavailable' } })

const digest = (text: string) => createHash('sha256').update(text).digest()

/** Read each time: the gateway may be given another one while it runs. null when there is none. */
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

/** Header lines as they came, without those of the connection and those that are left out. */
function headerLines({ rawHeaders }: IncomingMessage, without: readonly string[] = []): string[] {
  const lines: string[] = []
  for (let index = 0; index < rawHeaders.length; index += 2) {
    const [name, value] = rawHeaders.slice(index, index + 2) as [string, string]
    const isLeftOut = hopByHop.has(name.toLowerCase()) || without.includes(name.toLowerCase())
    if (!isLeftOut) lines.push(name, value)
  }
  return lines
}

/** As if it had been sent from inside: a gateway gives its callers of other hosts no rights. */
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

function joined(one: Duplex, other: Duplex): void {
  for (const [from, to] of [
    [one, other],
    [other, one],
  ] as const) {
    from.on('error', () => to.destroy())
    from.on('close', () => to.destroy())
    from.pipe(to)
  }
}

/** Ends what one address has too many of. */
function boundConnections(server: Server): void {
  const held = new Map<string, number>()
  server.on('connection', (socket) => {
    const from = socket.remoteAddress ?? ''
    const count = (held.get(from) ?? 0) + 1
    if (count > maxConnections) return void socket.destroy()
    held.set(from, count)
    socket.once('close', () => {
      const left = (held.get(from) ?? 1) - 1
      if (left === 0) held.delete(from)
      else held.set(from, left)
    })
  })
}

/**
 * The way to a gateway that listens on its own loopback and takes whoever comes from there for its owner: everything that
 * is not admitted ends here, each request by itself. Told from outside by 403; 502 when the gateway does not listen.
 */
export function openForwarder(gatewayPort: number, admission: Admission): Server {
  const server = createServer(limits, async (incoming, response) => {
    const isForAll = isOpen(incoming, admission)
    if (!isForAll && !(await hasToken(incoming, admission))) {
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
      else response.writeHead(502, { 'content-type': 'application/json', connection: 'close' }).end(silence)
    })
    incoming.on('error', () => outgoing.destroy())
    response.on('close', () => outgoing.destroy())
    if (isForAll) outgoing.end(() => incoming.resume())
    else incoming.pipe(outgoing)
  })
  boundConnections(server)

  server.on('upgrade', async (incoming, socket, head) => {
    socket.on('error', () => socket.destroy())
    if (!(await hasToken(incoming, admission))) return refuse(socket, '403 Forbidden', refusal)
    // The token was for this door; the gateway is given it in the first message.
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
      joined(socket, gateway)
    })
    outgoing.on('response', (answer) => {
      answer.resume()
      refuse(socket, `${answer.statusCode} ${answer.statusMessage}`, silence)
    })
    outgoing.on('error', () => refuse(socket, '502 Bad Gateway', silence))
    outgoing.end()
  })
  return server
}
