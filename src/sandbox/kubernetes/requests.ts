import { setTimeout as sleep } from 'node:timers/promises'
import { Agent, type Dispatcher, fetch, type Response } from 'undici'
import WebSocket from 'ws'
import type { Cluster } from './cluster.ts'

const connectTimeoutMs = 15_000
/** Maximum repetitions of a call that the API asks to repeat later. */
const maxTries = 4
const maxRetryAfterMs = 15_000

/** The protocols of programs and forwarded ports. The first one exists since version 1.30. */
const protocols = ['v5.channel.k8s.io', 'v4.channel.k8s.io']

const tooManyRequests = 429
export const firstServerError = 500

/** The API's answer to a call that it refused or could not carry out. The message is for the log only. */
export class KubernetesRefusal extends Error {
  override name = 'KubernetesRefusal'
  readonly code: number
  readonly retryAfterMs: number | null

  constructor(code: number, message: string, retryAfterMs: number | null = null) {
    super(message)
    this.code = code
    this.retryAfterMs = retryAfterMs
  }
}

type Method = 'GET' | 'POST' | 'PATCH' | 'DELETE'

export type Query = Record<string, string | number | boolean | undefined>

interface Asked {
  query?: Query
  body?: unknown
  contentType?: string
}

export interface List<T> {
  metadata: { resourceVersion?: string; continue?: string }
  items: T[]
}

/** Takes a frame of a WebSocket of the API: its channel and its bytes. */
export type OnFrame = (channel: number, bytes: Buffer) => void

/**
 * The requests of the API of a cluster, in one namespace; paths are relative to that, such as `core/pods/a`. They throw
 * a KubernetesRefusal when the API refuses or fails, and the errors of the network.
 */
export interface KubernetesRequests {
  readonly server: string
  send(method: Method, path: string, asked: Asked, signal: AbortSignal): Promise<Response>
  /** Sends a request with a JSON answer, and repeats it if the API asks for that. */
  ask(method: Method, path: string, asked: Asked, signal: AbortSignal): Promise<unknown>
  /** Opens a WebSocket. */
  open(path: string, onFrame: OnFrame, signal: AbortSignal): Promise<WebSocket>
}

const roots: Record<string, string> = { core: '/api/v1', apps: '/apis/apps/v1', net: '/apis/networking.k8s.io/v1' }

/** The path of the API for a path such as `apps/statefulsets/a`. */
function pathIn(namespace: string, path: string): string {
  const [group = '', ...rest] = path.split('/')
  return `${roots[group]}/namespaces/${namespace}/${rest.join('/')}`
}

function searchOf(query: Query): string {
  const pairs = Object.entries(query).filter(([, value]) => value !== undefined)
  return pairs.length > 0
    ? `?${new URLSearchParams(pairs.map(([name, value]): [string, string] => [name, String(value)]))}`
    : ''
}

const retryAfterOf = (text: string | null): number | null => {
  const seconds = Number(text)
  return text === null || !(seconds >= 0) ? null : Math.min(seconds * 1000, maxRetryAfterMs)
}

/** The headers of a call, and connections with its TLS options, which are kept until these change. */
function createAccess(cluster: Cluster) {
  let known: { options: string; dispatcher: Dispatcher } | undefined
  return async (): Promise<{ headers: Record<string, string>; dispatcher: Dispatcher }> => {
    const { tls, headers } = await cluster.access()
    const options = JSON.stringify(tls)
    if (known?.options !== options) known = { options, dispatcher: new Agent({ allowH2: false, connect: tls }) }
    return { headers, dispatcher: known.dispatcher }
  }
}

/** Creates the requests to a cluster. Calls `onAnswer` after each answer of the API. Makes no call yet. */
export function createRequests(cluster: Cluster, namespace: string, onAnswer: () => void): KubernetesRequests {
  const { server } = cluster
  const access = createAccess(cluster)

  async function send(method: Method, path: string, { query = {}, body, contentType }: Asked, signal: AbortSignal) {
    const url = `${server}${pathIn(namespace, path)}${searchOf(query)}`
    const { headers, dispatcher } = await access()
    const response = await fetch(url, {
      method,
      headers: { ...headers, ...(contentType && { 'content-type': contentType }) },
      ...(body !== undefined && { body: JSON.stringify(body) }),
      dispatcher,
      signal,
    })
    onAnswer()
    if (response.ok) return response
    const status = (await response.json().catch(() => ({}))) as { message?: string }
    const retryAfterMs = retryAfterOf(response.headers.get('retry-after'))
    throw new KubernetesRefusal(response.status, status.message ?? `HTTP ${response.status}`, retryAfterMs)
  }

  /** Makes a call, and repeats it if the API asks for that. */
  async function ask(method: Method, path: string, asked: Asked, signal: AbortSignal): Promise<unknown> {
    for (let tries = 1; ; tries += 1) {
      try {
        return await (await send(method, path, asked, signal)).json()
      } catch (error) {
        const isLater =
          error instanceof KubernetesRefusal && (error.code === tooManyRequests || error.code >= firstServerError)
        if (!isLater || error.retryAfterMs === null || tries === maxTries) throw error
        await sleep(error.retryAfterMs, undefined, { signal })
      }
    }
  }

  async function open(path: string, onFrame: OnFrame, signal: AbortSignal): Promise<WebSocket> {
    const { tls, headers } = await cluster.access()
    const options: WebSocket.ClientOptions = { ...tls, headers, handshakeTimeout: connectTimeoutMs }
    const url = `${server.replace(/^http/, 'ws')}${pathIn(namespace, path)}`
    signal.throwIfAborted()
    const socket = new WebSocket(url, protocols, options)
    const onAbort = () => socket.terminate()
    signal.addEventListener('abort', onAbort, { once: true })
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    socket.on('open', resolve)
    socket.on('error', reject)
    socket.on('message', (frame: Buffer) => onFrame(frame[0] ?? 0, frame.subarray(1)))
    socket.on('unexpected-response', ({ socket: connection }, { statusCode = 0 }) => {
      connection?.destroy()
      reject(new KubernetesRefusal(statusCode, `the API answers ${statusCode} to a WebSocket`))
    })
    try {
      await promise
      onAnswer()
      return socket
    } catch (error) {
      signal.throwIfAborted()
      throw error
    } finally {
      signal.removeEventListener('abort', onAbort)
    }
  }

  return { server, send, ask, open }
}
