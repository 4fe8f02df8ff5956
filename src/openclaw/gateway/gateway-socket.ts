import { WebSocket } from 'ws'
import { AppError } from '#errors/app-error.ts'
import { isObject } from '#openclaw/json.ts'
import { parseJson } from '#platform/json/parse.ts'
import { largeBytes, parseJsonBytes } from '#platform/json/thread.ts'
import type { Endpoint } from '#sandbox/driver.ts'
import { GatewayRefusal, GatewayUnreachable } from './gateway-errors.ts'
import {
  frameBounds,
  isAnswer,
  isRunEvent,
  maxLargeFrameBytes,
  mayAnswerLarge,
  ReceivedFrames,
} from './gateway-frames.ts'
import { type RunEvent, readRunEvent } from './run-events.ts'

/** A paused socket may have received some more large frames already. */
const maxParsing = 4

export type OnRunEvent = (event: RunEvent) => void

interface Pending {
  method: string
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

/**
 * Opens a socket that matches answers to calls by number, and passes the events of runs to `onRunEvent`; a socket
 * without it is for one request. It ignores all other events except the challenge, and ends when the gateway sends more
 * than gateway-frames.ts allows.
 */
export function openSocket(
  endpoint: Endpoint,
  token: string,
  { deadline, signal, onRunEvent }: { deadline: number; signal: AbortSignal; onRunEvent: OnRunEvent | undefined },
) {
  const socket = new WebSocket(socketUrl(endpoint), {
    maxPayload: maxLargeFrameBytes,
    perMessageDeflate: false,
    // Thousands of short frames may arrive in one chunk: this gives each its own turn of the event loop.
    allowSynchronousEvents: false,
    handshakeTimeout: Math.max(1, deadline - performance.now()),
    headers: {
      ...(endpoint.kind === 'tcp' && endpoint.headers),
      // The gateway reads the token from `connect`. This header is for a proxy in front of it.
      authorization: `Bearer ${token}`,
    },
  })
  const pending = new Map<string, Pending>()
  const received = new ReceivedFrames(onRunEvent !== undefined)
  let isChallenged = false
  /** The large frames that are parsed in a thread. */
  let parsing = 0
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

  function take(frame: unknown): void {
    if (!isObject(frame)) return
    if (frame.type === 'event' && frame.event === 'connect.challenge') {
      isChallenged = true
      challenged.resolve()
    }
    const event = onRunEvent && readRunEvent(frame)
    if (event) onRunEvent?.(event)
    if (frame.type !== 'res') return
    const id = textOr(frame.id, '')
    const call = pending.get(id)
    pending.delete(id)
    if (frame.ok === true) call?.resolve(frame.payload)
    else call?.reject(refusalFrom(frame.error))
  }

  /** A frame that is not JSON is ignored, and its call times out. */
  function cannotRead(error: unknown): void {
    if (error instanceof AppError && error.code === 'invalid_json') return
    end('the gateway sent a frame that cannot be read', error)
  }

  async function takeLarge(data: Buffer): Promise<void> {
    parsing += 1
    if (parsing > maxParsing) return end('the gateway sent too many large frames')
    socket.pause()
    await parseJsonBytes(data, frameBounds).then(take).catch(cannotRead)
    parsing -= 1
    if (parsing === 0) socket.resume()
  }

  /** Counts received data. Returns whether the connection continues. */
  function count(data: Buffer): boolean {
    if (broken) return false
    const fault = received.add(data.length, () => [...pending.values()].some(({ method }) => mayAnswerLarge(method)))
    if (fault !== null) end(fault)
    return fault === null
  }

  socket.on('ping', count)
  socket.on('pong', count)
  socket.on('message', (data: Buffer) => {
    if (!count(data)) return
    if (isChallenged && !isAnswer(data) && !(onRunEvent && isRunEvent(data))) return
    if (data.length > largeBytes) return void takeLarge(data)
    try {
      take(parseJson(data, frameBounds))
    } catch (error) {
      cannotRead(error)
    }
  })
  signal.addEventListener('abort', onAbort, { once: true })

  const send = (method: string, params: Record<string, unknown>, until: number): Promise<unknown> => {
    if (broken) return Promise.reject(new GatewayUnreachable(broken.message, { cause: broken.cause }))
    calls += 1
    const id = String(calls)
    const answer = Promise.withResolvers<unknown>()
    pending.set(id, { method, resolve: answer.resolve, reject: answer.reject })
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
