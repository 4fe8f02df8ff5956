import { WebSocket } from 'ws'
import type { Endpoint } from '#sandbox/driver.ts'
import { GatewayRefusal, GatewayUnreachable } from './gateway-errors.ts'
import { isObject } from './json.ts'

const maxPayloadBytes = 32 * 1024 * 1024

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

const socketUrl = (endpoint: Endpoint) =>
  endpoint.kind === 'unix' ? `ws+unix://${endpoint.path}:/` : `ws://${endpoint.host}:${endpoint.port}/`

/** Opens a socket that matches answers to calls by number. It ignores all events except the challenge. */
export function openSocket(endpoint: Endpoint, token: string, deadline: number, signal: AbortSignal) {
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
