import { setTimeout as sleep } from 'node:timers/promises'
import type { KubernetesObject } from '@kubernetes/client-node'
import { firstServerError, KubernetesRefusal, type KubernetesRequests, type List, type Query } from './requests.ts'

/** The time after which the API ends a watch, which is then resumed. */
const watchSeconds = 30
const gone = 410

/** A change that a watch reports. */
export interface Change<T> {
  type: 'ADDED' | 'MODIFIED' | 'DELETED'
  object: T
}

/**
 * The changes after a version, until the API ends the watch. Throws a KubernetesRefusal for a version that is too old.
 */
async function* watch({ send }: KubernetesRequests, path: string, query: Query, version: string, signal: AbortSignal) {
  const options = { watch: true, resourceVersion: version, allowWatchBookmarks: true, timeoutSeconds: watchSeconds }
  const response = await send('GET', path, { query: { ...query, ...options } }, signal)
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

/**
 * The first object at the beginning of the watch, or null, and each change from then on. Continues when the API ends
 * the watch; throws only the errors of `first`.
 */
export async function* watchFromNow<T extends KubernetesObject>(
  requests: KubernetesRequests,
  /** Requests a list of one object, with the version of the list. */
  first: () => Promise<List<T>>,
  path: string,
  query: Query,
  signal: AbortSignal,
) {
  let version: string | undefined
  for (;;) {
    if (version === undefined) {
      const found = await first()
      version = found.metadata.resourceVersion ?? ''
      yield { type: 'FIRST' as const, object: found.items[0] ?? null }
    }
    try {
      for await (const { type, object } of watch(requests, path, query, version, signal)) {
        version = object.metadata?.resourceVersion ?? version
        if (type !== 'BOOKMARK') yield { type, object } as Change<T>
      }
    } catch (error) {
      signal.throwIfAborted()
      // The version is too old, or the connection was lost: the list has the version to continue from.
      version = undefined
      const isGone = error instanceof KubernetesRefusal && error.code === gone
      if (!isGone) await sleep((error as KubernetesRefusal).retryAfterMs ?? 1000, undefined, { signal })
    }
  }
}
