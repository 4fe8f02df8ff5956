import { setTimeout as sleep } from 'node:timers/promises'
import { WebSocket } from 'ws'
import type { Endpoint } from '#sandbox/driver.ts'
import { isObject } from './json.ts'

export type { Endpoint }

export interface ConfigIssue {
  path: string
  message: string
}

/** The gateway answered no. The message is its own, fit for showing. */
export class GatewayRefusal extends Error {
  override name = 'GatewayRefusal'
  readonly code: string
  /** What is wrong with a configuration, key by key. */
  readonly issues: readonly ConfigIssue[]
  readonly retryAfterMs: number | undefined

  constructor(code: string, message: string, options: { issues?: readonly ConfigIssue[]; retryAfterMs?: number } = {}) {
    super(message)
    this.code = code
    this.issues = options.issues ?? []
    this.retryAfterMs = options.retryAfterMs
  }
}

/** No answer came. With `outcomeUnknown` the request had been sent, and may have been carried out. */
export class GatewayUnreachable extends Error {
  override name = 'GatewayUnreachable'
  readonly outcomeUnknown: boolean

  constructor(message: string, options: ErrorOptions & { outcomeUnknown?: boolean } = {}) {
    super(message, options)
    this.outcomeUnknown = options.outcomeUnknown ?? false
  }
}

/** One open connection to a gateway, with every right that there is. */
export interface GatewayClient {
  /**
   * Calls a method and answers its payload. Throws GatewayRefusal when the gateway says no, GatewayUnreachable when no
   * answer came in time (30 s unless said otherwise), the connection broke, or the connection's signal was aborted.
   */
  call(method: string, params?: Record<string, unknown>, options?: { timeoutMs?: number }): Promise<unknown>
  /** Ends the connection; calls still open throw GatewayUnreachable. */
  close(): void
  /** Fulfilled once the connection has ended, whoever ended it. Never rejected. */
  readonly closed: Promise<void>
}

const maxPayloadBytes = 32 * 1024 * 1024
const defaultCallTimeoutMs = 30_000
const minPauseMs = 100

/** Accepted without a device of its own only from loopback, under exactly this name and mode. */
const greeting = {
  minProtocol: 1,
  maxProtocol: 4,
  client: { id: 'gateway-client', version: '1.0.0', platform: 'linux', mode: 'backend' },
  role: 'operator',
  scopes: ['operator.read', 'operator.write', 'operator.admin', 'operator.approvals', 'operator.pairing'],
  caps: [],
}

interface Pending {
  resolve(payload: unknown): void
  reject(error: Error): void
}

/** Longer than any text of OpenClaw's own; what stands at the other end may be the agent itself. */
const maxTextCharacters = 4000

/** What an agent sends in its gateway's place may have no text form: `String` of it throws. */
const textOr = (value: unknown, otherwise: string) =>
  typeof value === 'string' ? value.slice(0, maxTextCharacters) : otherwise

function refusalFrom(error: unknown): GatewayRefusal {
  const { code, message, details, retryAfterMs } = isObject(error) ? error : {}
  const issues = isObject(details) && Array.isArray(details.issues) ? details.issues.filter(isObject) : []
  return new GatewayRefusal(textOr(code, 'UNKNOWN'), textOr(message, 'the gateway refused without saying why'), {
    issues: issues.map((issue) => ({ path: textOr(issue.path, ''), message: textOr(issue.message, '') })),
    ...(typeof retryAfterMs === 'number' && { retryAfterMs }),
  })
}

/** Repeats what the gateway refused for now, after the time it names, as long as the deadline allows. */
async function whileUnavailable<T>(deadline: number, signal: AbortSignal, attempt: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await attempt()
    } catch (error) {
      if (!(error instanceof GatewayRefusal) || error.code !== 'UNAVAILABLE' || error.retryAfterMs === undefined)
        throw error
      const pause = Math.max(error.retryAfterMs, minPauseMs)
      if (performance.now() + pause >= deadline) throw error
      await sleep(pause, undefined, { signal })
    }
  }
}

const socketUrl = (endpoint: Endpoint) =>
  endpoint.kind === 'unix' ? `ws+unix://${endpoint.path}:/` : `ws://${endpoint.host}:${endpoint.port}/`

/** A socket with calls numbered on it. Messages before the greeting's answer, and events, are not calls' business. */
function open(endpoint: Endpoint, token: string, deadline: number, signal: AbortSignal) {
  const socket = new WebSocket(socketUrl(endpoint), {
    maxPayload: maxPayloadBytes,
    perMessageDeflate: false,
    handshakeTimeout: Math.max(1, deadline - performance.now()),
    headers: {
      ...(endpoint.kind === 'tcp' && endpoint.headers),
      // Not for the gateway, which asks for it later, but for what may stand before it.
      authorization: `Bearer ${token}`,
    },
  })
  const pending = new Map<string, Pending>()
  let calls = 0
  let broken: GatewayUnreachable | undefined
  const challenged = Promise.withResolvers<void>()
  const closed = Promise.withResolvers<void>()
  challenged.promise.catch(() => {}) // whoever waits for it sees it; a socket that breaks later has nobody waiting

  const end = (message: string, cause?: unknown) => {
    broken ??= new GatewayUnreachable(message, { cause })
    challenged.reject(broken)
    for (const { reject } of pending.values()) reject(new GatewayUnreachable(message, { cause, outcomeUnknown: true }))
    pending.clear()
    closed.resolve()
    signal.removeEventListener('abort', onAbort)
    socket.terminate()
  }
  const onAbort = () => end('the call to the gateway was given up', signal.reason)

  socket.on('error', (error) => end('the connection to the gateway failed', error))
  socket.on('close', (code) => end(`the gateway closed the connection (${code})`))
  socket.on('message', (data) => {
    const frame = parseFrame(String(data))
    if (frame.type === 'event' && frame.event === 'connect.challenge') challenged.resolve()
    if (frame.type !== 'res') return
    const id = textOr(frame.id, '')
    const call = pending.get(id)
    pending.delete(id)
    if (frame.ok === true) call?.resolve(frame.payload)
    else call?.reject(refusalFrom(frame.error))
  })
  signal.addEventListener('abort', onAbort, { once: true })

  const send = (method: string, params: Record<string, unknown>, until: number): Promise<unknown> => {
    if (broken) return Promise.reject(new GatewayUnreachable(broken.message, { cause: broken.cause }))
    calls += 1
    const id = String(calls)
    const answer = Promise.withResolvers<unknown>()
    pending.set(id, answer)
    const timer = setTimeout(
      () =>
        answer.reject(new GatewayUnreachable(`the gateway did not answer ${method} in time`, { outcomeUnknown: true })),
      Math.max(0, until - performance.now()),
    )
    socket.send(JSON.stringify({ type: 'req', id, method, params }))
    return answer.promise.finally(() => {
      clearTimeout(timer)
      pending.delete(id)
    })
  }
  return { send, end, challenged: challenged.promise, closed: closed.promise }
}

function parseFrame(text: string): Record<string, unknown> {
  try {
    const frame: unknown = JSON.parse(text)
    return isObject(frame) ? frame : {}
  } catch {
    return {}
  }
}

async function greet(endpoint: Endpoint, token: string, deadline: number, signal: AbortSignal) {
  const connection = open(endpoint, token, deadline, signal)
  const timer = setTimeout(
    () => connection.end('the gateway did not greet in time'),
    Math.max(0, deadline - performance.now()),
  )
  try {
    await connection.challenged
    await connection.send('connect', { ...greeting, auth: { token } }, deadline)
    return connection
  } catch (error) {
    connection.end('the gateway refused the connection', error)
    // Nothing was asked of it yet, whatever became of the greeting.
    throw error instanceof GatewayUnreachable ? new GatewayUnreachable(error.message, { cause: error.cause }) : error
  } finally {
    clearTimeout(timer)
  }
}

/**
 * Connects to a gateway's WebSocket and logs in. The signal and the deadline hold for connecting; the signal also ends
 * the connection later. A gateway that is starting and says when to come again is asked again until the deadline.
 * Throws GatewayRefusal (a wrong token), GatewayUnreachable, or the signal's reason.
 */
export async function connectGateway(
  endpoint: Endpoint,
  token: string,
  { signal, timeoutMs }: { signal: AbortSignal; timeoutMs: number },
): Promise<GatewayClient> {
  signal.throwIfAborted()
  const deadline = performance.now() + timeoutMs
  try {
    const connection = await whileUnavailable(deadline, signal, () => greet(endpoint, token, deadline, signal))
    return {
      call(method, params = {}, { timeoutMs: callTimeoutMs = defaultCallTimeoutMs } = {}) {
        const until = performance.now() + callTimeoutMs
        return whileUnavailable(until, signal, () => connection.send(method, params, until))
      },
      close: () => connection.end('the connection was closed'),
      closed: connection.closed,
    }
  } catch (error) {
    signal.throwIfAborted()
    throw error
  }
}
