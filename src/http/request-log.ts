import type { FastifyInstance, FastifyRequest } from 'fastify'
import { canonicalId, isId } from '#platform/ids.ts'
import { requestDuration } from '#platform/metrics.ts'
import { instanceIdOf } from './instance-params.ts'

/** Monitoring calls these every few seconds. */
const unlogged = new Set(['/healthz', '/readyz'])

/** Number of logged segments of a path without a route: the next one may be the id of a session. */
const loggedParts = 5

/**
 * The description of a request in the log. The route stands for the path, because paths can identify people: clients
 * choose the ids of sessions and the names of files. The history has them, under the same request id, until they are
 * erased.
 */
export function logFieldsOf(request: FastifyRequest) {
  const { routeOptions, url, caller } = request
  const id = instanceIdOf(request)
  const path = url.split('?')[0] ?? ''
  return {
    ...(routeOptions.url === undefined
      ? { path: path.split('/', loggedParts).join('/') }
      : { route: routeOptions.url }),
    ...(id !== undefined && isId(id) && { instanceId: canonicalId(id) }),
    ...(caller && { organizationId: caller.organizationId, keyId: caller.keyId }),
  }
}

/** A streamed answer has six listeners of Chowder's and five of Node's. Node warns of a leak from the eleventh on. */
const listenersOfAnswer = 20

/** Writes one line and one metric for each request, after its answer was sent or its client left. */
export function useRequestLog(app: FastifyInstance): void {
  app.addHook('onRequest', (request, reply, done) => {
    done()
    const { url } = request.routeOptions
    if (url !== undefined && unlogged.has(url)) return
    reply.raw.setMaxListeners(listenersOfAnswer)
    reply.raw.on('close', () => {
      // 101: the request became a WebSocket, which has closed.
      const isWhole = reply.raw.writableFinished || reply.raw.statusCode === 101
      const status = isWhole ? reply.raw.statusCode : 'client_left'
      requestDuration.observe({ method: request.method, route: url ?? 'none', status }, reply.elapsedTime / 1000)
      request.log.info(
        {
          method: request.method,
          ...logFieldsOf(request),
          status: reply.raw.statusCode,
          ms: Math.round(reply.elapsedTime),
          ...(!isWhole && { clientLeft: true }),
        },
        'request',
      )
    })
  })
}
