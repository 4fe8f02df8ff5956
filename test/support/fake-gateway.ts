import { createHash, randomUUID } from 'node:crypto'
import { createServer, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { isDeepStrictEqual } from 'node:util'
import { type WebSocket, WebSocketServer } from 'ws'
import { isObject, mergePatch } from '#openclaw/json.ts'
import { type Endpoint, SandboxAbsentError } from '#sandbox/driver.ts'

type Json = Record<string, unknown>

/** The faults and delays of the gateway. Tests change them at any time. */
interface Behaviour {
  /** `failing` answers at once that it is not alive, `hung` never answers. */
  health: 'ok' | 'starting' | 'failing' | 'hung'
  /**
   * `cut` ends the connection after the first piece of text; `hung` never answers. `items` is an answer of a million
   * items, `events` a stream without an end of events that mean nothing, and `nonsense` no JSON.
   */
  turns: 'ok' | 'failed' | 'internal error' | 'cut' | 'hung' | 'items' | 'events' | 'nonsense'
  /** `events` floods the connection of a call without an answer; `nonsense` answers no JSON. */
  calls: 'ok' | 'events' | 'nonsense'
  /** What an answer says; the pieces are sent one by one. */
  pieces: string[]
  pauseMs: number
  /** Called with each call's method; may throw a refusal, or wait. */
  onCall(method: string, params: Json): void | Promise<void>
}

export interface FakeGateway {
  endpoint: Endpoint
  behaviour: Behaviour
  /** The configuration as it stands in its file, secrets in the clear. */
  config: Json
  turns: { headers: IncomingHttpHeaders; body: Json }[]
  calls: { method: string; params: Json }[]
  /** What it answers beyond `config.*`; may throw a Refusal. */
  methods: Record<string, (params: Json) => Json | Promise<Json>>
  /** Ends all connections, as a gateway that dies. */
  disconnect(): void
  close(): Promise<void>
}

/** A refusal as `onCall` may throw it. */
export class Refusal extends Error {
  readonly error: Json
  constructor(error: Json) {
    super(String(error.message))
    this.error = error
  }
}

const invalid = (message: string, issues: Json[] = []) =>
  new Refusal({ code: 'INVALID_REQUEST', message, ...(issues.length > 0 && { details: { issues } }) })

const redacted = '__OPENCLAW_REDACTED__'
const secretKeys = new Set(['apiKey', 'token', 'botToken'])
const knownKeys = new Set(
  'agents auth browser channels commands cron discovery env gateway hooks logging mcp memory messages meta models plugins secrets session skills tools ui update'.split(
    ' ',
  ),
)

const redact = (value: unknown): unknown => {
  if (Array.isArray(value)) return value.map(redact)
  if (!isObject(value)) return value
  return Object.fromEntries(
    Object.entries(value).map(([key, inner]) => [
      key,
      secretKeys.has(key) && typeof inner === 'string' ? redacted : redact(inner),
    ]),
  )
}

/** The arrays that a patch would take elements from; the real gateway wants each of them confirmed. */
function shrunkArrays(before: unknown, patch: unknown, path: string): string[] {
  if (Array.isArray(before)) {
    const keeps = Array.isArray(patch) && before.every((item) => patch.some((other) => isDeepStrictEqual(item, other)))
    return keeps ? [] : [path]
  }
  if (!isObject(before)) return []
  const keys = Object.keys(isObject(patch) ? patch : before)
  return keys.flatMap((key) =>
    shrunkArrays(before[key], isObject(patch) ? patch[key] : null, path === '' ? key : `${path}.${key}`),
  )
}

/**
 * A stand-in for one OpenClaw 2026.9.6 gateway, in this process: `/healthz`, `/startupz`, `/readyz`, `/v1/responses`
 * and the WebSocket's handshake, `config.get` and `config.patch`, in shapes recorded from the real one.
 */
export async function startFakeGateway(options: {
  /** The only token that is taken; without one any is. */
  token?: string
  config?: Json
  socketPath?: string
}): Promise<FakeGateway> {
  const { token, socketPath } = options
  const gateway: FakeGateway = {
    endpoint: { kind: 'unix', path: socketPath ?? '' },
    behaviour: { health: 'ok', turns: 'ok', calls: 'ok', pieces: ['Hello', ' there'], pauseMs: 0, onCall: () => {} },
    config: options.config ?? {},
    turns: [],
    calls: [],
    methods: {},
    disconnect() {
      server.closeAllConnections()
      for (const socket of sockets.clients) socket.terminate()
    },
    async close() {
      gateway.disconnect()
      sockets.close()
      await new Promise((resolve) => server.close(resolve))
    },
  }

  const server = createServer((request, response) => {
    answer(gateway, token, request, response).catch(() => response.destroy())
  })
  const sockets = new WebSocketServer({ server })
  sockets.on('connection', (socket) => converse(gateway, token, socket))
  await new Promise<void>((resolve) =>
    socketPath ? server.listen(socketPath, resolve) : server.listen(0, '127.0.0.1', resolve),
  )
  if (!socketPath) {
    gateway.endpoint = { kind: 'tcp', host: '127.0.0.1', port: (server.address() as AddressInfo).port }
  }
  return gateway
}

function sendText(response: ServerResponse, status: number, text: string): void {
  response.writeHead(status).end(text)
}

function sendJson(response: ServerResponse, status: number, body: Json): void {
  response.writeHead(status, { 'content-type': 'application/json; charset=utf-8' }).end(JSON.stringify(body))
}

async function answer(
  gateway: FakeGateway,
  token: string | undefined,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const { behaviour } = gateway
  const path = request.url ?? '/'
  if (path === '/healthz' || path === '/startupz' || path === '/readyz') {
    if (behaviour.health === 'hung') return
    if (behaviour.health === 'failing') return sendJson(response, 503, {})
    if (path === '/healthz') return sendJson(response, 200, { ok: true, status: 'live' })
    const ready = behaviour.health === 'ok'
    if (path === '/readyz')
      return sendJson(response, ready ? 200 : 503, { ready, failing: ready ? [] : ['startup-sidecars'] })
    return sendJson(response, ready ? 200 : 503, { ok: ready, status: ready ? 'started' : 'starting' })
  }
  if (token !== undefined && request.headers.authorization !== `Bearer ${token}`) {
    return sendJson(response, 401, { error: { message: 'Unauthorized', type: 'unauthorized' } })
  }
  if (path !== '/v1/responses') return sendText(response, 404, 'Not Found')
  if (request.method !== 'POST') return sendText(response, 405, 'Method Not Allowed')
  const chunks: Buffer[] = []
  for await (const chunk of request) chunks.push(chunk as Buffer)
  await takeTurn(gateway, request.headers, JSON.parse(Buffer.concat(chunks).toString()) as Json, response)
}

/** Writes as fast as it is read, while the gateway behaves so. */
function floodStream({ behaviour }: FakeGateway, response: ServerResponse): void {
  const piece = 'data: {"type":"x"}\n\n'.repeat(3000)
  const write = () => {
    while (behaviour.turns === 'events' && !response.destroyed && response.write(piece));
    if (behaviour.turns !== 'events') response.destroy()
  }
  response.writeHead(200, { 'content-type': 'text/event-stream' }).on('drain', write)
  write()
}

/** The same on a WebSocket. */
function floodSocket({ behaviour }: Pick<FakeGateway, 'behaviour'>, socket: WebSocket): void {
  if (behaviour.calls !== 'events') socket.terminate()
  if (socket.readyState !== socket.OPEN) return
  for (let count = 0; count < 1000; count += 1) socket.send('{"type":"event","event":"x","payload":{}}')
  setImmediate(floodSocket, { behaviour }, socket)
}

async function takeTurn(gateway: FakeGateway, headers: IncomingHttpHeaders, body: Json, response: ServerResponse) {
  const { behaviour } = gateway
  gateway.turns.push({ headers, body })
  if (behaviour.turns === 'hung') return
  if (behaviour.turns === 'items') {
    response.writeHead(200, { 'content-type': 'application/json' })
    return response.end(`{"output":[${'{},'.repeat(1_000_000)}{}],"status":"completed"}`)
  }
  if (behaviour.turns === 'events') return floodStream(gateway, response)
  if (behaviour.turns === 'nonsense') return sendText(response, 200, '\u0000<html>')
  if (body.model !== 'openclaw') {
    const message = 'Invalid `model`. Use `openclaw` or `openclaw/<agentId>`.'
    return sendJson(response, 400, { error: { message, type: 'invalid_request_error' } })
  }
  const base = {
    id: `resp_${randomUUID()}`,
    object: 'response',
    created_at: Math.floor(Date.now() / 1000),
    model: 'openclaw',
  }
  const usage = (output: number) => ({ input_tokens: 10, output_tokens: output, total_tokens: 10 + output })
  const failure = {
    failed: { status: 401, code: 'authentication_error', message: '401: the provider refused the key' },
    'internal error': { status: 500, code: 'api_error', message: 'internal error' },
  }[behaviour.turns as 'failed' | 'internal error']
  const failed = failure && {
    ...base,
    status: 'failed',
    output: [],
    usage: usage(0),
    error: { code: failure.code, message: failure.message },
  }
  const item = { type: 'message', id: `msg_${randomUUID()}`, role: 'assistant' }
  const text = behaviour.pieces.join('')
  const done = { ...item, content: [{ type: 'output_text', text }], phase: 'final_answer', status: 'completed' }
  const completed = { ...base, status: 'completed', output: [done], usage: usage(behaviour.pieces.length) }

  if (body.stream !== true) {
    await sleep(behaviour.pauseMs)
    if (behaviour.turns === 'cut') return response.destroy()
    return failure ? sendJson(response, failure.status, failed ?? {}) : sendJson(response, 200, completed)
  }

  response.writeHead(200, { 'content-type': 'text/event-stream; charset=utf-8', 'cache-control': 'no-cache' })
  const emit = (type: string, fields: Json) =>
    response.write(`event: ${type}\ndata: ${JSON.stringify({ type, ...fields })}\n\n`)
  const begun = { ...base, status: 'in_progress', output: [], usage: usage(0) }
  const place = { item_id: item.id, output_index: 0, content_index: 0 }
  emit('response.created', { response: begun })
  emit('response.in_progress', { response: begun })
  emit('response.output_item.added', { output_index: 0, item: { ...item, content: [], status: 'in_progress' } })
  emit('response.content_part.added', { ...place, part: { type: 'output_text', text: '' } })
  if (failed) {
    emit('response.failed', { response: failed })
  } else {
    for (const piece of behaviour.pieces) {
      await sleep(behaviour.pauseMs)
      emit('response.output_text.delta', { ...place, delta: piece })
      if (behaviour.turns === 'cut') return response.destroy()
    }
    emit('response.output_text.done', { ...place, text })
    emit('response.content_part.done', { ...place, part: { type: 'output_text', text } })
    emit('response.output_item.done', { output_index: 0, item: done })
    emit('response.completed', { response: completed })
  }
  response.end('data: [DONE]\n\n')
}

function converse(gateway: FakeGateway, token: string | undefined, socket: WebSocket): void {
  const send = (frame: Json) => socket.send(JSON.stringify(frame))
  let greeted = false
  send({ type: 'event', event: 'connect.challenge', payload: { nonce: randomUUID(), ts: Date.now() } })
  socket.on('message', async (data) => {
    const { id, method, params = {} } = JSON.parse(String(data)) as { id: string; method: string; params?: Json }
    try {
      if (greeted && gateway.behaviour.calls === 'events') return floodSocket(gateway, socket)
      if (greeted && gateway.behaviour.calls === 'nonsense') return socket.send('\u0000<html>')
      if (!greeted && method !== 'connect') throw invalid('invalid handshake: first request must be connect')
      await gateway.behaviour.onCall(method, params)
      const payload = method === 'connect' ? greet(token, params) : await call(gateway, method, params)
      greeted = true
      send({ type: 'res', id, ok: true, payload })
    } catch (error) {
      if (error instanceof SandboxAbsentError) return socket.terminate() // it is being destroyed
      if (!(error instanceof Refusal)) throw error
      send({ type: 'res', id, ok: false, error: error.error })
      if (!greeted) socket.close(1008)
    }
  })
}

function greet(token: string | undefined, params: Json): Json {
  if (!isObject(params.auth) || (token !== undefined && params.auth.token !== token)) {
    throw invalid('unauthorized: gateway token mismatch (provide gateway auth token)')
  }
  return {
    type: 'hello-ok',
    protocol: 4,
    server: { version: '2026.9.6' },
    auth: { role: 'operator', scopes: params.scopes },
  }
}

const hashOf = (config: Json) => createHash('sha256').update(JSON.stringify(config)).digest('base64url')

function call(gateway: FakeGateway, method: string, params: Json): Json | Promise<Json> {
  gateway.calls.push({ method, params })
  const added = gateway.methods[method]
  if (added) return added(params)
  if (method === 'config.get') {
    const shown = redact(gateway.config)
    return { exists: true, valid: true, parsed: shown, config: shown, hash: hashOf(gateway.config), issues: [] }
  }
  if (method !== 'config.patch') throw invalid(`unknown method: ${method}`)
  if (params.baseHash !== hashOf(gateway.config)) {
    throw invalid('config changed since last load; re-run config.get and retry')
  }
  const patch = JSON.parse(String(params.raw)) as Json
  const confirmed = Array.isArray(params.replacePaths) ? params.replacePaths : []
  const shrunk = shrunkArrays(gateway.config, patch, '').filter((path) => !confirmed.includes(path))
  if (shrunk.length > 0) {
    throw invalid(
      `config.patch would remove entries from array path(s): ${shrunk.join(', ')}. Pass replacePaths with the exact path(s) when this is intentional, or use config.apply for full-config replacement.`,
    )
  }
  const next = mergePatch(gateway.config, patch) as Json
  if (isDeepStrictEqual(next, gateway.config)) return { ok: true, noop: true, changedPaths: [] }
  const unknown = Object.keys(next).find((key) => !knownKeys.has(key))
  if (unknown) {
    const message = `Unrecognized key: ${JSON.stringify(unknown)}`
    throw invalid(`invalid config: <root>: ${message}`, [{ path: '', message }])
  }
  gateway.config = { ...next, meta: { lastTouchedVersion: '2026.9.6' } }
  return {
    ok: true,
    hash: hashOf(gateway.config),
    sentinel: { payload: { kind: 'config-patch', status: 'ok', stats: { requiresRestart: 'browser' in patch } } },
  }
}
