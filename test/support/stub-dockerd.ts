import { once } from 'node:events'
import { createServer, type IncomingHttpHeaders } from 'node:http'
import type { Socket } from 'node:net'
import { text } from 'node:stream/consumers'

interface Received {
  method: string
  url: string
  headers: IncomingHttpHeaders
  body: string
}

/** A program in the place of dockerd: it notes what it is asked, and knows some containers. */
export interface StubDockerd {
  host: string
  /** All that has reached it, but for its looking at containers, programs, volumes and networks. */
  received: Received[]
  /** Of the calls that it holds back, the ones now open. */
  open: number
  /** What it does with the stream to a program. */
  program(socket: Socket): void
  close(): Promise<void>
}

/** The only file of a unix socket is `path`. Calls whose path ends in one of `held` get a head, and nothing else. */
export async function openStubDockerd(
  path: string,
  { containers, held }: { containers: Record<string, { Id: string; role: string }>; held: string },
): Promise<StubDockerd> {
  const received: Received[] = []
  const stub: StubDockerd = {
    host: `unix://${path}`,
    received,
    open: 0,
    program: (socket) => void socket.pipe(socket),
    async close() {
      server.closeAllConnections()
      for (const socket of sockets) socket.destroy()
      await new Promise((resolve) => server.close(resolve))
    },
  }
  const sockets = new Set<Socket>()

  const known = (reference: string) =>
    containers[reference] ?? Object.values(containers).find(({ Id }) => Id === reference)

  function tell(url: string): [status: number, body: unknown] | null {
    const [, container] = /^\/containers\/([^/]+)\/json$/.exec(url) ?? []
    if (container) {
      const found = known(container)
      if (!found) return [404, { message: `No such container: ${container}` }]
      return [200, { Id: found.Id, Image: found.Id, Config: { Labels: { 'chowder.role': found.role } } }]
    }
    const [, execution] = /^\/exec\/([^/]+)\/json$/.exec(url) ?? []
    if (execution)
      return [200, { ID: execution, ContainerID: execution.replaceAll('e', 'a'), Running: false, ExitCode: 0 }]
    if (/^\/networks\/[^/]+$/.test(url)) return [200, { Id: 'f'.repeat(64), Driver: 'bridge', Options: {} }]
    if (url.startsWith('/containers/json?all=true&filters=%7B%22ancestor')) return [200, []]
    return null
  }

  const server = createServer(async (request, response) => {
    const { method = '', url = '', headers } = request
    const body = await text(request).catch(() => '')
    const told = method === 'GET' ? tell(url) : null
    if (told)
      return void response.writeHead(told[0], { 'content-type': 'application/json' }).end(JSON.stringify(told[1]))
    received.push({ method, url, headers, body })
    if (url.includes(held)) {
      stub.open += 1
      response.on('close', () => {
        stub.open -= 1
      })
      return void response.writeHead(200, { 'content-type': 'application/json' }).flushHeaders()
    }
    response.writeHead(200, { 'content-type': 'application/json' }).end('{"Id":"made"}')
  }).on('upgrade', async (request, socket: Socket, first) => {
    sockets.add(socket)
    socket.on('close', () => sockets.delete(socket)).on('error', () => {})
    if (first.length > 0) socket.unshift(first)
    const { method = '', url = '', headers } = request
    const length = Number(headers['content-length'])
    let body = Buffer.alloc(0)
    while (body.length < length) {
      const chunk: Buffer | null = socket.read()
      if (chunk) body = Buffer.concat([body, chunk])
      else await once(socket, 'readable')
    }
    received.push({ method, url, headers, body: body.toString() })
    socket.write('HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n')
    stub.program(socket)
  })
  server.listen(path)
  await once(server, 'listening')
  return stub
}
