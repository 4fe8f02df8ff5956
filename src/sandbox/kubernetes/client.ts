import type { KubernetesObject } from '@kubernetes/client-node'
import type WebSocket from 'ws'
import { InstallError } from '#errors/install-error.ts'
import type { Logger } from '#platform/log.ts'
import { SandboxAbsentError, SandboxPathError, SandboxProblemError, SandboxUnavailableError } from '#sandbox/driver.ts'
import type { Cluster } from './cluster.ts'
import { createRequests, KubernetesRefusal, type List, type OnFrame, type Query } from './requests.ts'
import { type Change, watchFromNow } from './watch.ts'

/** Longer than the slowest observed call of the API. */
const usualDeadlineMs = 30_000
const pageSize = 500
/** The owner of the fields that Chowder sets. */
const fieldManager = 'chowder'

/** Calls of the API of a cluster, in one namespace, each with a deadline. */
export interface KubernetesClient {
  /** The sentence for operators while the API is unreachable; null when it answers. */
  outage(signal: AbortSignal): Promise<string | null>
  /**
   * Makes calls, which get the signal that ends them. Throws the signal's reason, the errors of sandboxes, and
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
  /** Creates an object, or sets the fields of this one, by server-side apply. */
  apply(path: string, wanted: KubernetesObject, signal: AbortSignal): Promise<void>
  /** Creates an object unless one with its name exists. */
  create(path: string, wanted: KubernetesObject, signal: AbortSignal): Promise<void>
  /** Changes fields of an object; false when there is none. */
  merge(path: string, fields: unknown, signal: AbortSignal): Promise<boolean>
  /** Begins to remove an object, if it exists and has this uid. */
  remove(path: string, options: { graceSeconds?: number; uid?: string | undefined }, signal: AbortSignal): Promise<void>
  /**
   * The current object, and again after each change; null while it does not exist. Continues until the loop is left.
   */
  follow<T extends KubernetesObject>(path: string, name: string, signal: AbortSignal): AsyncGenerator<T | null>
  /** Future changes of the objects with these labels; some may be missing. Continues until the loop is left. */
  changes<T extends KubernetesObject>(path: string, query: Query, signal: AbortSignal): AsyncGenerator<Change<T>>
  /** Opens a WebSocket at a path with a query. */
  open(path: string, onFrame: OnFrame, signal: AbortSignal): Promise<WebSocket>
}

/** Errors that are rethrown unchanged. */
const ownErrors = [SandboxAbsentError, SandboxPathError, SandboxProblemError, SandboxUnavailableError, InstallError]

/**
 * Creates a client without calling the API. Logs one line when the API becomes unreachable, and one when it is back.
 */
export function createKubernetesClient(
  cluster: Cluster,
  namespace: string,
  log?: Pick<Logger, 'info' | 'warn'>,
): KubernetesClient {
  const requests = createRequests(cluster, namespace, recordAnswer)
  const { server, ask } = requests
  let isAway = false

  function recordAnswer(): void {
    if (isAway) log?.info(`Kubernetes answers again at ${server}`)
    isAway = false
  }

  const unreachable = (error: unknown): string =>
    error instanceof KubernetesRefusal
      ? `Kubernetes at ${server} refuses Chowder: ${error.message}. Check the credentials and the Role of Chowder.`
      : `Kubernetes cannot be reached at ${server}. Check KUBECONFIG and the network.`

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

  /** Makes calls with `call`; null when the API answers one of these statuses. */
  const callUnless = <T>(codes: readonly number[], signal: AbortSignal, calls: (signal: AbortSignal) => Promise<T>) =>
    call(signal, (limited) =>
      calls(limited).catch((error: unknown) => {
        if (error instanceof KubernetesRefusal && codes.includes(error.code)) return null
        throw error
      }),
    )

  const listPage = <T>(path: string, query: Query, signal: AbortSignal) =>
    call(signal, (limited) => ask('GET', path, { query }, limited) as Promise<List<T>>)

  async function* list<T>(path: string, query: Query, signal: AbortSignal): AsyncGenerator<T> {
    let next: string | undefined
    do {
      const page = await listPage<T>(path, { ...query, limit: pageSize, continue: next }, signal)
      yield* page.items
      next = page.metadata.continue || undefined
    } while (next !== undefined)
  }

  const fromNow = <T extends KubernetesObject>(path: string, query: Query, signal: AbortSignal) =>
    watchFromNow<T>(requests, () => listPage<T>(path, { ...query, limit: 1 }, signal), path, query, signal)

  async function* follow<T extends KubernetesObject>(path: string, name: string, signal: AbortSignal) {
    const query = { fieldSelector: `metadata.name=${name}` }
    for await (const { type, object } of fromNow<T>(path, query, signal)) yield type === 'DELETED' ? null : object
  }

  async function* changes<T extends KubernetesObject>(path: string, query: Query, signal: AbortSignal) {
    for await (const change of fromNow<T>(path, query, signal)) if (change.type !== 'FIRST') yield change
  }

  return {
    async outage(signal) {
      try {
        const query = { limit: 1 }
        await call(signal, (limited) => ask('GET', 'core/pods', { query }, limited), { deadlineMs: 5000 })
        return null
      } catch (error) {
        signal.throwIfAborted()
        return unreachable((error as Error).cause)
      }
    },
    call,
    find: (path, signal) => callUnless([404], signal, (limited) => ask('GET', path, {}, limited)) as Promise<never>,
    list,
    async apply(path, body, signal) {
      const contentType = 'application/apply-patch+yaml'
      const query = { fieldManager, force: true }
      const where = `${path}/${body.metadata?.name}`
      await call(signal, (limited) => ask('PATCH', where, { query, body, contentType }, limited))
    },
    async create(path, body, signal) {
      const asked = { query: { fieldManager }, body, contentType: 'application/json' }
      await callUnless([409], signal, (limited) => ask('POST', path, asked, limited))
    },
    async merge(path, body, signal) {
      const asked = { query: { fieldManager }, body, contentType: 'application/merge-patch+json' }
      const answer = await callUnless([404], signal, (limited) => ask('PATCH', path, asked, limited))
      return answer !== null
    },
    async remove(path, { graceSeconds: gracePeriodSeconds, uid }, signal) {
      const body = {
        ...{ apiVersion: 'v1', kind: 'DeleteOptions', propagationPolicy: 'Background', gracePeriodSeconds },
        ...(uid !== undefined && { preconditions: { uid } }),
      }
      const asked = { body, contentType: 'application/json' }
      // 409: it is another object.
      await callUnless([404, 409], signal, (limited) => ask('DELETE', path, asked, limited))
    },
    follow,
    changes,
    open: requests.open,
  }
}
