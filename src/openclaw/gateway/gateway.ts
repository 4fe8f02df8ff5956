import { setTimeout as sleep } from 'node:timers/promises'
import type { Endpoint } from '#sandbox/driver.ts'
import { GatewayRefusal, GatewayUnreachable } from './gateway-errors.ts'
import { type OnRunEvent, openSocket } from './gateway-socket.ts'

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

const defaultCallTimeoutMs = 30_000
const minPauseMs = 100

/** The gateway accepts a client without a device identity only from loopback, and only with this id and mode. */
const connectParams = {
  minProtocol: 1,
  maxProtocol: 4,
  client: { id: 'gateway-client', version: '1.0.0', platform: 'linux', mode: 'backend' },
  role: 'operator',
  scopes: ['operator.read', 'operator.write', 'operator.admin', 'operator.approvals', 'operator.pairing'],
}

/** Repeats an attempt that the gateway refuses as unavailable, after the pause that it returns, until the deadline. */
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

interface Opening {
  deadline: number
  signal: AbortSignal
  onRunEvent: OnRunEvent | undefined
  answersApprovals: boolean
}

async function logIn(endpoint: Endpoint, token: string, opening: Opening) {
  const { deadline, answersApprovals } = opening
  const caps = answersApprovals ? ['exec-approvals'] : []
  const connection = openSocket(endpoint, token, opening)
  const timer = setTimeout(
    () => connection.end('the gateway did not accept the connection in time'),
    Math.max(0, deadline - performance.now()),
  )
  try {
    await connection.challenged
    await connection.send('connect', { ...connectParams, caps, auth: { token } }, deadline)
    return connection
  } catch (error) {
    connection.end('the gateway refused the connection', error)
    // No call was sent yet, so the outcome is known even without an answer to the login.
    throw error instanceof GatewayUnreachable ? new GatewayUnreachable(error.message, { cause: error.cause }) : error
  } finally {
    clearTimeout(timer)
  }
}

/**
 * Connects to a gateway's WebSocket and logs in, within `timeoutMs`. The signal aborts the login, and later closes the
 * connection. A starting gateway returns a pause, after which the login is repeated. Throws GatewayRefusal (such as for
 * a wrong token), GatewayUnreachable, or the signal's reason. With `onRunEvent` the connection may be kept: it gets the
 * events of all runs of the gateway, whoever began them. With `answersApprovals` the gateway asks before it runs
 * commands while the connection is open; without such a connection it denies them.
 */
export async function connectGateway(
  endpoint: Endpoint,
  token: string,
  options: { signal: AbortSignal; timeoutMs: number; onRunEvent?: OnRunEvent; answersApprovals?: boolean },
): Promise<GatewayClient> {
  const { signal, timeoutMs, onRunEvent, answersApprovals = false } = options
  signal.throwIfAborted()
  const deadline = performance.now() + timeoutMs
  const opening = { deadline, signal, onRunEvent, answersApprovals }
  try {
    const connection = await whileUnavailable(deadline, signal, () => logIn(endpoint, token, opening))
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
