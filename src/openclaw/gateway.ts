import { setTimeout as sleep } from 'node:timers/promises'
import { WebSocket } from 'ws'
import type { Endpoint } from '#sandbox/driver.ts'
import { isObject } from './json.ts'

export type { Endpoint }

export interface ConfigIssue {
  path: string
  message: string
}

/** The gateway refused a request. The message is the gateway's, and may be shown to callers. */
export class GatewayRefusal extends Error {
  override name = 'GatewayRefusal'
  readonly code: string
  /** The errors of a refused configuration, by key. */
  readonly issues: readonly ConfigIssue[]
  readonly retryAfterMs: number | undefined

  constructor(code: string, message: string, options: { issues?: readonly ConfigIssue[]; retryAfterMs?: number } = {}) {
    super(message)
    this.code = code
    this.issues = options.issues ?? []
    this.retryAfterMs = options.retryAfterMs
  }
}

/** The gateway did not answer. With `outcomeUnknown`, the request was sent and may have been carried out. */
export class GatewayUnreachable extends Error {
  override name = 'GatewayUnreachable'
  readonly outcomeUnknown: boolean

  constructor(message: string, options: ErrorOptions & { outcomeUnknown?: boolean } = {}) {
    super(message, options)
    this.outcomeUnknown = options.outcomeUnknown ?? false
  }
}

/** One open connection to a gateway, with all of the gateway's scopes. */
export interface GatewayClient {
  /**
   * Calls a method and returns its payload. Throws GatewayRefusal when the gateway refuses the call. Throws
   * GatewayUnreachable when no answer came in time (by default 30 s), the connection broke, or its signal was aborted.
   */
  call(method: string, params?: Record<string, unknown>, options?: { timeoutMs?: number }): Promise<unknown>
  /** Closes the connection. Calls without an answer throw GatewayUnreachable. */
  close(): void
  /** Resolves once either side has closed the connection. Never rejects. */
  readonly closed: Promise<void>
}

const maxPayloadBytes = 32 * 1024 * 1024
const defaultCallTimeoutMs = 30_000
const minPauseMs = 100

/** The gateway accepts a client without a device identity only from loopback, and only with this id and mode. */
const connectParams = {
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

/** Longer than all of OpenClaw's texts. The limit is needed because the agent may answer in place of its gateway. */
const maxTextCharacters = 4000

/** Values are never converted, because an agent may send an object on which `String` throws. */
const textOr = (value: unknown, otherwise: string) =>
  typeof value === 'string' ? value.slice(0, maxTextCharacters) : otherwise

function refusalFrom(error: unknown): GatewayRefusal {
  const { code, message, details, retryAfterMs } = isObject(error) ? error : {}
  const issues = isObject(details) && Array.isArray(details.issues) ? details.issues.filter(isObject) : []
  return new GatewayRefusal(
    textOr(code, 'UNKNOWN'),
    textOr(message, 'the gateway refused the request without a reason'),
    {
      issues: issues.map((issue) => ({ path: textOr(issue.path, ''), message: textOr(issue.message, '') })),
      ...(typeof retryAfterMs === 'number' && { retryAfterMs }),
    },
  )
}

/** Repeats an attempt that the gateway refuses as unavailable, after the pause that it names, until the deadline. */
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

/** Opens a socket that matches answers to calls by number. It ignores all events except the challenge. */
function openSocket(endpoint: Endpoint, token: string, deadline: number, signal: AbortSignal) {
  const socket = new WebSocket(socketUrl(endpoint), {
    maxPayload: maxPayloadBytes,
    perMessageDeflate: false,
    handshakeTimeout: Math.max(1, deadline - performance.now()),
    headers: {
      ...(endpoint.kind === 'tcp' && endpoint.headers),
      // The gateway reads the token from `connect`. This header is for a proxy in front of it.
      authorization: `Bearer ${token}`,
    },
  })
  const pending = new Map<string, Pending>()
  let calls = 0
  let broken: GatewayUnreachable | undefined
  const challenged = Promise.withResolvers<void>()
  const closed = Promise.withResolvers<void>()
  challenged.promise.catch(() => {}) // rejects unobserved when the socket breaks later

  const end = (message: string, cause?: unknown) => {
    broken ??= new GatewayUnreachable(message, { cause })
    challenged.reject(broken)
    for (const { reject } of pending.values()) reject(new GatewayUnreachable(message, { cause, outcomeUnknown: true }))
    pending.clear()
    closed.resolve()
    signal.removeEventListener('abort', onAbort)
    socket.terminate()
  }
  const onAbort = () => end('the call to the gateway was aborted', signal.reason)

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

async function logIn(endpoint: Endpoint, token: string, deadline: number, signal: AbortSignal) {
  const connection = openSocket(endpoint, token, deadline, signal)
  const timer = setTimeout(
    () => connection.end('the gateway did not accept the connection in time'),
    Math.max(0, deadline - performance.now()),
  )
  try {
    await connection.challenged
    await connection.send('connect', { ...connectParams, auth: { token } }, deadline)
    return connection
  } catch (error) {
    connection.end('the gateway refused the connection', error)
    // No call was sent yet, so the outcome is known even if the login has no answer.
    throw error instanceof GatewayUnreachable ? new GatewayUnreachable(error.message, { cause: error.cause }) : error
  } finally {
    clearTimeout(timer)
  }
}

/**
 * Connects to a gateway's WebSocket and logs in, within `timeoutMs`. The signal aborts the login, and later closes the
 * connection. A gateway that is starting names a pause, after which the login is repeated.
 * Throws GatewayRefusal (such as for a wrong token), GatewayUnreachable, or the signal's reason.
 */
export async function connectGateway(
  endpoint: Endpoint,
  token: string,
  { signal, timeoutMs }: { signal: AbortSignal; timeoutMs: number },
): Promise<GatewayClient> {
  signal.throwIfAborted()
  const deadline = performance.now() + timeoutMs
  try {
    const connection = await whileUnavailable(deadline, signal, () => logIn(endpoint, token, deadline, signal))
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
