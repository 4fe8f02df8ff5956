import type { RequestOptions } from 'node:https'
import { setTimeout as sleep } from 'node:timers/promises'
import type { KubeConfig, KubernetesObject } from '@kubernetes/client-node'
import { Agent, type Dispatcher, fetch, ProxyAgent } from 'undici'
import WebSocket from 'ws'
import { InstallError } from '#platform/install-error.ts'
import type { Logger } from '#platform/log.ts'
import { SandboxAbsentError, SandboxPathError, SandboxProblemError, SandboxUnavailableError } from '#sandbox/driver.ts'

/** Longer than the API was seen to need for any call that does not wait by itself. */
const usualDeadlineMs = 30_000
const connectTimeoutMs = 15_000
/** How often a call is made that the API asks to make later. */
const maxTries = 4
const maxRetryAfterMs = 15_000
/** After that the API ends a watch, which is then resumed. */
const watchSeconds = 30
const pageSize = 500
/** By which the API knows what Chowder has set. */
const fieldManager = 'chowder'

/** Of programs and of forwarded ports. The first one is since version 1.30. */
const protocols = ['v5.channel.k8s.io', 'v4.channel.k8s.io']

const gone = 410
const tooManyRequests = 429
const firstServerError = 500

/** The API's answer to a call that it has refused or could not carry out. The message is for the log only. */
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

type Query = Record<string, string | number | boolean | undefined>

interface Asked {
  query?: Query
  body?: unknown
  contentType?: string
}

interface List<T> {
  metadata: { resourceVersion?: string; continue?: string }
  items: T[]
}

/** A change that a watch tells. */
interface Change<T> {
  type: 'ADDED' | 'MODIFIED' | 'DELETED'
  object: T
}

/** What a WebSocket of the API brings: a channel, and bytes. */
export type OnFrame = (channel: number, bytes: Buffer) => void

/** Calls of the API of a cluster, in one namespace. None of them waits for ever. */
export interface KubernetesClient {
  /** The sentence for operators while the API cannot be reached; null when it answers. */
  outage(signal: AbortSignal): Promise<string | null>
  /**
   * Makes calls, which are given the signal that ends them. Throws the signal's reason, the errors of sandboxes, and
   * SandboxUnavailableError for every other failure and past the deadline (30 s by default): a call may have had its
   * effect or not.
   */
  call<T>(
    signal: AbortSignal,
    calls: (signal: AbortSignal) => Promise<T>,
    options?: { deadlineMs?: number },
  ): Promise<T>
  /** null when there is no such object. Paths are relative to the namespace, such as `core/pods/a`. */
  find<T extends KubernetesObject>(path: string, signal: AbortSignal): Promise<T | null>
  /** The objects with these labels or fields, in pages: one that was deleted or added meanwhile may be missing. */
  list<T extends KubernetesObject>(path: string, query: Query, signal: AbortSignal): AsyncGenerator<T>
  /** Creates an object, or gives it the fields of this one, by server-side apply. */
  apply(path: string, wanted: KubernetesObject, signal: AbortSignal): Promise<void>
  /** Creates an object unless one of its name exists. */
  create(path: string, wanted: KubernetesObject, signal: AbortSignal): Promise<void>
  /** Changes fields of an object; false when there is none. */
  merge(path: string, fields: unknown, signal: AbortSignal): Promise<boolean>
  /** Begins to remove an object, if it exists, and is the one with this uid. */
  remove(path: string, options: { graceSeconds?: number; uid?: string | undefined }, signal: AbortSignal): Promise<void>
  /** An object now, and after each of its changes; null while it does not exist. Goes on until it is left. */
  follow<T extends KubernetesObject>(path: string, name: string, signal: AbortSignal): AsyncGenerator<T | null>
  /** The changes of the objects with these labels from now on, of which some may be missing. Goes on until it is left. */
  changes<T extends KubernetesObject>(path: string, query: Query, signal: AbortSignal): AsyncGenerator<Change<T>>
  /** Opens a WebSocket at a path with a query. */
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

/**
 * The headers that prove who calls, and the connections for that. These are kept, and made anew when the certificates
 * have changed. The library would make a connection for each call.
 */
function createAccess(config: KubeConfig) {
  let known: { tls: string; dispatcher: Dispatcher } | undefined
  return async (): Promise<{ headers: Record<string, string>; dispatcher: Dispatcher }> => {
    const options: RequestOptions = {}
    await config.applyToHTTPSOptions(options)
    const { ca, cert, key, pfx, passphrase, rejectUnauthorized, servername, headers } = options
    const parts = Object.entries({ ca, cert, key, pfx, passphrase, rejectUnauthorized, servername })
    const connect = Object.fromEntries(parts.filter(([, value]) => value !== undefined))
    const tls = JSON.stringify(connect)
    if (known?.tls !== tls) {
      const uri = config.getCurrentCluster()?.proxyUrl
      const dispatcher = uri ? new ProxyAgent({ uri, requestTls: connect }) : new Agent({ allowH2: false, connect })
      known = { tls, dispatcher }
    }
    return { headers: { ...(headers as Record<string, string>) }, dispatcher: known.dispatcher }
  }
}

/** Errors of calls that say themselves what is wrong. */
const ownErrors = [SandboxAbsentError, SandboxPathError, SandboxProblemError, SandboxUnavailableError, InstallError]

/** Creates a client, which calls nothing yet. With a log it says once when the API is away, and once when it is back. */
export function createKubernetesClient(
  config: KubeConfig,
  namespace: string,
  log?: Pick<Logger, 'info' | 'warn'>,
): KubernetesClient {
  const server = config.getCurrentCluster()?.server ?? ''
  const access = createAccess(config)
  let isAway = false

  function noteAnswer(): void {
    if (isAway) log?.info(`Kubernetes answers again at ${server}`)
    isAway = false
  }

  const unreachable = (error: unknown): string =>
    error instanceof KubernetesRefusal
      ? `Kubernetes at ${server} refuses Chowder: ${error.message}. Check the credentials and the Role of Chowder.`
      : `Kubernetes cannot be reached at ${server}. Check KUBECONFIG, KUBERNETES_CONTEXT and the network.`

  async function send(method: Method, path: string, { query = {}, body, contentType }: Asked, signal: AbortSignal) {
    const url = `${server.replace(/\/$/, '')}${path}${searchOf(query)}`
    const { headers, dispatcher } = await access()
    const response = await fetch(url, {
      method,
      headers: { ...headers, ...(contentType && { 'content-type': contentType }) },
      ...(body !== undefined && { body: JSON.stringify(body) }),
      dispatcher,
      signal,
    })
    noteAnswer()
    if (response.ok) return response
    const status = (await response.json().catch(() => ({}))) as { message?: string }
    const retryAfterMs = retryAfterOf(response.headers.get('retry-after'))
    throw new KubernetesRefusal(response.status, status.message ?? `HTTP ${response.status}`, retryAfterMs)
  }

  /** Makes a call, and makes it again when the API asks for that. */
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

  async function call<T>(
    signal: AbortSignal,
    calls: (signal: AbortSignal) => Promise<T>,
    { deadlineMs = usualDeadlineMs } = {},
  ): Promise<T> {
    signal.throwIfAborted()
    const deadline = new AbortController()
    const late = new Error(`Kubernetes did not answer in ${deadlineMs} ms`)
    const timer = setTimeout(() => deadline.abort(late), deadlineMs)
    try {
      return await calls(AbortSignal.any([signal, deadline.signal]))
    } catch (error) {
      signal.throwIfAborted()
      if (ownErrors.some((kind) => error instanceof kind)) throw error
      const isOutage = !(error instanceof KubernetesRefusal) && !deadline.signal.aborted
      if (isOutage) {
        if (!isAway) log?.warn(unreachable(error))
        isAway = true
      }
      throw new SandboxUnavailableError(deadline.signal.aborted ? late : error, {
        isLogged: isOutage && log !== undefined,
      })
    } finally {
      clearTimeout(timer)
    }
  }

  /** The same as `call`; null when the API answers one of these statuses. */
  const callUnless = <T>(codes: readonly number[], signal: AbortSignal, calls: (signal: AbortSignal) => Promise<T>) =>
    call(signal, (limited) =>
      calls(limited).catch((error: unknown) => {
        if (error instanceof KubernetesRefusal && codes.includes(error.code)) return null
        throw error
      }),
    )

  async function* list<T>(path: string, query: Query, signal: AbortSignal): AsyncGenerator<T> {
    let next: string | undefined
    do {
      const page = (await call(signal, (limited) =>
        ask('GET', pathIn(namespace, path), { query: { ...query, limit: pageSize, continue: next } }, limited),
      )) as List<T>
      yield* page.items
      next = page.metadata.continue || undefined
    } while (next !== undefined)
  }

  /** The changes after a version, until the API ends the watch. Throws a KubernetesRefusal for a version that is too old. */
  async function* watch(path: string, query: Query, version: string, signal: AbortSignal) {
    const options = { watch: true, resourceVersion: version, allowWatchBookmarks: true, timeoutSeconds: watchSeconds }
    const response = await send('GET', pathIn(namespace, path), { query: { ...query, ...options } }, signal)
    if (!response.body) return
    let text = ''
    for await (const chunk of response.body.pipeThrough(new TextDecoderStream())) {
      const lines = `${text}${chunk}`.split('\n')
      text = lines.pop() ?? ''
      for (const line of lines) {
        const { type, object } = JSON.parse(line) as { type: string; object: KubernetesObject & { code?: number } }
        if (type === 'ERROR') throw new KubernetesRefusal(object.code ?? firstServerError, 'the watch has ended')
        yield { type, object }
      }
    }
  }

  /** The first object as it is where the watch begins, or null, and each change from then on. */
  async function* watchFromNow<T extends KubernetesObject>(path: string, query: Query, signal: AbortSignal) {
    let version: string | undefined
    for (;;) {
      if (version === undefined) {
        const found = (await call(signal, (limited) =>
          ask('GET', pathIn(namespace, path), { query: { ...query, limit: 1 } }, limited),
        )) as List<T>
        version = found.metadata.resourceVersion ?? ''
        yield { type: 'FIRST' as const, object: found.items[0] ?? null }
      }
      try {
        for await (const { type, object } of watch(path, query, version, signal)) {
          version = object.metadata?.resourceVersion ?? version
          if (type !== 'BOOKMARK') yield { type, object } as Change<T>
        }
      } catch (error) {
        signal.throwIfAborted()
        // A version that is too old, or a lost connection: the list tells where to go on.
        version = undefined
        const isGone = error instanceof KubernetesRefusal && error.code === gone
        if (!isGone) await sleep((error as KubernetesRefusal).retryAfterMs ?? 1000, undefined, { signal })
      }
    }
  }

  async function* follow<T extends KubernetesObject>(path: string, name: string, signal: AbortSignal) {
    const query = { fieldSelector: `metadata.name=${name}` }
    for await (const { type, object } of watchFromNow<T>(path, query, signal)) yield type === 'DELETED' ? null : object
  }

  async function* changes<T extends KubernetesObject>(path: string, query: Query, signal: AbortSignal) {
    for await (const change of watchFromNow<T>(path, query, signal)) if (change.type !== 'FIRST') yield change
  }

  return {
    async outage(signal) {
      try {
        const path = pathIn(namespace, 'core/pods')
        await call(signal, (limited) => ask('GET', path, { query: { limit: 1 } }, limited), {
          deadlineMs: 5000,
        })
        return null
      } catch (error) {
        signal.throwIfAborted()
        return unreachable((error as Error).cause)
      }
    },
    call,
    find: (path, signal) =>
      callUnless([404], signal, (limited) => ask('GET', pathIn(namespace, path), {}, limited)) as Promise<never>,
    list,
    async apply(path, body, signal) {
      const contentType = 'application/apply-patch+yaml'
      const query = { fieldManager, force: true }
      const where = pathIn(namespace, `${path}/${body.metadata?.name}`)
      await call(signal, (limited) => ask('PATCH', where, { query, body, contentType }, limited))
    },
    async create(path, body, signal) {
      const asked = { query: { fieldManager }, body, contentType: 'application/json' }
      await callUnless([409], signal, (limited) => ask('POST', pathIn(namespace, path), asked, limited))
    },
    async merge(path, body, signal) {
      const asked = { query: { fieldManager }, body, contentType: 'application/merge-patch+json' }
      const answer = await callUnless([404], signal, (limited) => ask('PATCH', pathIn(namespace, path), asked, limited))
      return answer !== null
    },
    async remove(path, { graceSeconds: gracePeriodSeconds, uid }, signal) {
      const body = {
        ...{ apiVersion: 'v1', kind: 'DeleteOptions', propagationPolicy: 'Background', gracePeriodSeconds },
        ...(uid !== undefined && { preconditions: { uid } }),
      }
      const asked = { body, contentType: 'application/json' }
      // 409: it is another one.
      await callUnless([404, 409], signal, (limited) => ask('DELETE', pathIn(namespace, path), asked, limited))
    },
    follow,
    changes,
    async open(path, onFrame, signal) {
      const options: WebSocket.ClientOptions = { handshakeTimeout: connectTimeoutMs }
      await config.applyToHTTPSOptions(options)
      const url = `${server.replace(/^http/, 'ws').replace(/\/$/, '')}${pathIn(namespace, path)}`
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
        noteAnswer()
        return socket
      } catch (error) {
        signal.throwIfAborted()
        throw error
      } finally {
        signal.removeEventListener('abort', onAbort)
      }
    },
  }
}
