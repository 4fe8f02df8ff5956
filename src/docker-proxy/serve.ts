import { once } from 'node:events'
import { rm } from 'node:fs/promises'
import { createServer, type IncomingMessage, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import { pipeline } from 'node:stream'
import { Value } from '@sinclair/typebox/value'
import type { Logger } from '#platform/log.ts'
import { type Call, type CallRequest, parseJson } from './call.ts'
import type { Dockerd } from './dockerd.ts'
import { Refusal } from './refusal.ts'

const maxConnections = 1024
const maxBodyBytes = 1024 * 1024
const maxUpgradeBytes = 4096
const maxLoggedPath = 200
/** Longer than the driver's default deadline of a call. */
const usualDeadlineMs = 35_000
/** The time after which an idle stream to a program is closed. */
const idleMs = 15 * 60_000

export interface ServedCalls {
  /** Ends every call and stream, and removes the socket. */
  close(): Promise<void>
}

/** Finds the permitted call of a request. Throws a Refusal if there is none. */
function find(calls: readonly Call[], { method, url = '' }: IncomingMessage, upgrade: boolean) {
  const [, path = '', search = ''] = /^(?:\/v1\.\d{1,2})?(\/[^?#]*)(?:\?([^#]*))?$/.exec(url) ?? []
  for (const call of calls) {
    const match = call.path.exec(path)
    if (!match || call.method !== method || call.upgrade !== upgrade) continue
    const parameters = [...new URLSearchParams(search)]
    const query = Object.fromEntries(parameters)
    const fault = Value.Errors(call.query, query).First()
    if (fault) throw new Refusal(403, `its query is not as Chowder makes it: ${fault.path}: ${fault.message}`)
    if (parameters.length > Object.keys(query).length) throw new Refusal(400, 'its query names a parameter twice')
    return { call, parts: { ...match.groups } as CallRequest['parts'], query }
  }
  throw new Refusal(403, 'this call of dockerd is not on the list')
}

/** The body if it is JSON. Any other body is dropped. */
async function bodyOf(request: IncomingMessage): Promise<unknown> {
  const { 'content-length': length = '0', 'transfer-encoding': encoding, 'content-type': type } = request.headers
  if (request.method !== 'POST' && (encoding !== undefined || length !== '0'))
    throw new Refusal(400, 'only a POST may have a body')
  if (type !== 'application/json') return void request.resume()
  const chunks: Buffer[] = []
  let size = 0
  for await (const chunk of request as AsyncIterable<Buffer>) {
    size += chunk.length
    // The rest is read too: a client that still sends would miss the answer.
    if (size <= maxBodyBytes) chunks.push(chunk)
  }
  if (size > maxBodyBytes) throw new Refusal(413, `its body is longer than ${maxBodyBytes} bytes`)
  return size === 0 ? undefined : parseJson(Buffer.concat(chunks).toString())
}

/** Reads the body of a request for a stream off the connection: the bytes after it are the program's input. */
async function skipBody({ headers }: IncomingMessage, socket: Socket, signal: AbortSignal): Promise<void> {
  const length = Number(headers['content-length'] ?? 0)
  if (headers['transfer-encoding'] !== undefined || length > maxUpgradeBytes)
    throw new Refusal(400, `with a stream the body has a length, of at most ${maxUpgradeBytes} bytes`)
  for (let left = length; left > 0; ) {
    const chunk: Buffer | null = socket.read()
    if (chunk) left -= chunk.length
    else await once(socket, 'readable', { signal })
    if (chunk && left < 0) socket.unshift(chunk.subarray(left))
  }
}

/** The signal that ends a call at its deadline, with a Refusal as the reason, or when the client has disconnected. */
function callLimit() {
  const abort = new AbortController()
  let timer: NodeJS.Timeout | undefined
  const removeDeadline = () => clearTimeout(timer)
  return {
    signal: abort.signal,
    within(ms: number) {
      removeDeadline()
      timer = setTimeout(() => abort.abort(new Refusal(504, `dockerd took longer than ${ms} ms`)), ms)
    },
    removeDeadline,
    end() {
      removeDeadline()
      abort.abort()
    },
  }
}

/**
 * Serves the calls on a unix socket, which replaces a left-over one. Every user of the socket may make them. Any other
 * call is answered with 403, in dockerd's format, and logged.
 */
export async function serveCalls(
  { path, share, calls, dockerd }: { path: string; share: string; calls: readonly Call[]; dockerd: Dockerd },
  log: Logger,
): Promise<ServedCalls> {
  const streams = new Set<Socket>()

  function refuse(request: IncomingMessage, response: ServerResponse, error: unknown): void {
    const { method, url = '' } = request
    const { status, message } = error instanceof Refusal ? error : new Refusal(500, 'the proxy failed')
    const call = { share, method, path: url.split('?')[0]?.slice(0, maxLoggedPath) }
    if (status === 500) log.error({ ...call, err: error }, message)
    else if (status !== 404) log.warn({ ...call, status }, message)
    if (response.headersSent) return void response.destroy()
    const text = status === 404 ? message : `docker-proxy, ${share}: ${method} ${call.path}: ${message}`
    response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify({ message: text }))
    request.resume()
  }

  /** Turns the connection into a stream to the program. Each direction ends by itself. */
  function join(socket: Socket, stream: Socket): void {
    socket.setTimeout(idleMs, () => socket.destroy())
    socket.write('HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n')
    pipeline(socket, stream, () => {})
    pipeline(stream, socket, () => {})
  }

  /** A request that comes with a socket is one for a stream. */
  async function serve(request: IncomingMessage, response: ServerResponse, socket: Socket | null): Promise<void> {
    const limit = callLimit()
    const { signal } = limit
    limit.within(usualDeadlineMs)
    ;(socket ?? response).on('close', limit.end)
    try {
      const { call, parts, query } = find(calls, request, socket !== null)
      const body = socket ? await skipBody(request, socket, signal) : await bodyOf(request)
      const decision = await call.decide({ parts, query, body, signal, within: limit.within })
      if ('answer' in decision) {
        response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(decision.answer))
        return
      }
      const { deadlineMs = usualDeadlineMs, ...outgoing } = decision
      limit.within(deadlineMs)
      const { head, stream } = await dockerd.send({ method: call.method, upgrade: call.upgrade, ...outgoing }, signal)
      if (socket && stream) {
        limit.removeDeadline()
        response.detachSocket(socket)
        return join(socket, stream)
      }
      response
        .writeHead(head.statusCode ?? 502, { 'content-type': head.headers['content-type'] ?? 'application/json' })
        .flushHeaders()
      pipeline(head, response, () => {})
    } catch (error) {
      const reason = signal.aborted ? signal.reason : error
      if (signal.aborted && !(reason instanceof Refusal)) return // the client has disconnected
      refuse(request, response, reason)
    }
  }

  const expects = (request: IncomingMessage, response: ServerResponse) =>
    refuse(request, response, new Refusal(400, 'the header Expect is not supported'))
  const server = createServer((request, response) => void serve(request, response, null))
    .on('checkContinue', expects)
    .on('checkExpectation', expects)
    .on('upgrade', (request, socket: Socket, first) => {
      streams.add(socket)
      socket.on('close', () => streams.delete(socket)).on('error', () => {}) // followed by `close`
      if (first.length > 0) socket.unshift(first)
      const response = new ServerResponse(request)
      response.assignSocket(socket)
      response.on('finish', () => socket.destroySoon())
      void serve(request, response, socket)
    })
  server.maxConnections = maxConnections
  await rm(path, { force: true })
  server.listen({ path, readableAll: true, writableAll: true })
  await once(server, 'listening')
  return {
    async close() {
      for (const stream of streams) stream.destroy()
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}
