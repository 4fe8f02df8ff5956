import { createServer, type IncomingHttpHeaders, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { WebSocketServer } from 'ws'

/** A request that the stub got. */
interface Received {
  url: string
  headers: IncomingHttpHeaders
  rawHeaders: string[]
  body: Record<string, unknown>
  response: ServerResponse
  /** When its connection was closed before the answer was complete. */
  abortedAt: number | undefined
}

export type Answer = (response: ServerResponse, received: Received) => void

/** A server that answers `/v1/responses` and `/healthz` in the gateway's format, as a test configures it. */
export interface StubGateway {
  endpoint: { kind: 'tcp'; host: string; port: number } | { kind: 'unix'; path: string }
  received: Received[]
  /** How many connections are open. */
  connections(): Promise<number>
  /** The answer to the next requests. */
  answer: Answer
  /** The behaviour of `/healthz`. */
  health: 'ok' | 'failing' | 'hung'
  healthProbes: number
  /** Whether `agent.wait` tells of a run that it has begun; `refused` when the call fails. */
  hasBegun: boolean | 'refused'
  close(): Promise<void>
}

/** Speaks as much of the gateway's WebSocket as `agent.wait` needs, and refuses all other calls. */
function serveRuns(server: Server, stub: StubGateway): void {
  new WebSocketServer({ server }).on('connection', (socket) => {
    socket.send(JSON.stringify({ type: 'event', event: 'connect.challenge', payload: {} }))
    socket.on('message', (data) => {
      const { id, method, params } = JSON.parse(String(data))
      const ok = method === 'connect' || (method === 'agent.wait' && stub.hasBegun !== 'refused')
      const payload = { runId: params.runId, status: 'timeout', ...(stub.hasBegun === true && { startedAt: 1 }) }
      socket.send(JSON.stringify({ type: 'res', id, ok, payload, error: { code: 'UNAVAILABLE', message: 'no' } }))
    })
  })
}

export async function startStubGateway(answer: Answer, socketPath?: string): Promise<StubGateway> {
  const server: Server = createServer((request, response) => {
    if (request.url === '/healthz') {
      stub.healthProbes++
      if (stub.health === 'hung') return
      response.writeHead(stub.health === 'ok' ? 200 : 500).end(JSON.stringify({ ok: true, status: 'live' }))
      return
    }
    const chunks: Buffer[] = []
    request.on('data', (chunk) => chunks.push(chunk))
    request.on('end', () => {
      const received: Received = {
        url: request.url ?? '',
        headers: request.headers,
        rawHeaders: request.rawHeaders,
        body: JSON.parse(Buffer.concat(chunks).toString()),
        response,
        abortedAt: undefined,
      }
      response.on('close', () => {
        if (!response.writableFinished) received.abortedAt = performance.now()
      })
      stub.received.push(received)
      stub.answer(response, received)
    })
  })
  await new Promise<void>((resolve) =>
    socketPath ? server.listen(socketPath, resolve) : server.listen(0, '127.0.0.1', resolve),
  )
  const stub: StubGateway = {
    endpoint: socketPath
      ? { kind: 'unix', path: socketPath }
      : { kind: 'tcp', host: '127.0.0.1', port: (server.address() as AddressInfo).port },
    received: [],
    connections: () => new Promise((resolve) => server.getConnections((_error, count) => resolve(count))),
    answer,
    health: 'ok',
    healthProbes: 0,
    hasBegun: true,
    close: async () => {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    },
  }
  serveRuns(server, stub)
  return stub
}

export const responseObject = (over: Record<string, unknown> = {}) => ({
  id: 'resp_1',
  object: 'response',
  created_at: 1,
  status: 'completed',
  model: 'openclaw',
  output: [
    {
      type: 'message',
      id: 'msg_1',
      role: 'assistant',
      content: [{ type: 'output_text', text: 'Grüße 🦞' }],
      status: 'completed',
    },
  ],
  usage: { input_tokens: 1, output_tokens: 2, total_tokens: 3 },
  ...over,
})

export const answerJson =
  (status: number, body: unknown, headers: Record<string, string> = {}): Answer =>
  (response) =>
    response
      .writeHead(status, { 'content-type': 'application/json; charset=utf-8', ...headers })
      .end(JSON.stringify(body))

/** The gateway's answer to a turn that fails: a response object with the error. */
export const answerFailed = (status: number, code: string, message: string): Answer =>
  answerJson(status, responseObject({ status: 'failed', output: [], error: { code, message } }))

export const sse = (event: { type: string } & Record<string, unknown>) =>
  `event: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`

const item = { item_id: 'msg_1', output_index: 0, content_index: 0 }

/** The beginning of a stream of the gateway, up to its text. */
export const streamHead = [
  sse({ type: 'response.created', response: responseObject({ status: 'in_progress', output: [] }) }),
  sse({ type: 'response.in_progress', response: responseObject({ status: 'in_progress', output: [] }) }),
  sse({
    type: 'response.output_item.added',
    output_index: 0,
    item: { type: 'message', id: 'msg_1', role: 'assistant', content: [], status: 'in_progress' },
  }),
  sse({ type: 'response.content_part.added', ...item, part: { type: 'output_text', text: '' } }),
].join('')

export const delta = (text: string) => sse({ type: 'response.output_text.delta', ...item, delta: text })

/** A complete stream of the gateway. */
export const wholeStream = [
  streamHead,
  delta('Grüße'),
  delta(' 🦞'),
  sse({ type: 'response.output_text.done', ...item, text: 'Grüße 🦞' }),
  sse({ type: 'response.content_part.done', ...item, part: { type: 'output_text', text: 'Grüße 🦞' } }),
  sse({ type: 'response.output_item.done', output_index: 0, item: responseObject().output[0] }),
  sse({ type: 'response.completed', response: responseObject() }),
  'data: [DONE]\n\n',
].join('')

export const startStream = (response: ServerResponse) =>
  response.writeHead(200, { 'content-type': 'text/event-stream; charset=utf-8', 'cache-control': 'no-cache' })

export const answerStream =
  (text: string): Answer =>
  (response) =>
    startStream(response).end(text)
