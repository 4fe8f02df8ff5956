import type { FastifyInstance } from 'fastify'
import { requestDuration } from '#platform/metrics.ts'
import { instanceIdOf } from './instance-params.ts'

/** Monitoring calls these every few seconds. */
const unlogged = new Set(['/healthz', '/readyz'])

/** Writes one line and one metric for each request, after its answer was sent or its client left. */
export function useRequestLog(app: FastifyInstance): void {
  app.addHook('onRequest', (request, reply, done) => {
    done()
    const { url } = request.routeOptions
    if (url !== undefined && unlogged.has(url)) return
    reply.raw.on('close', () => {
      const { caller } = request
      // 101: the request became a WebSocket, which has closed.
      const isWhole = reply.raw.writableFinished || reply.raw.statusCode === 101
      const instanceId = instanceIdOf(request)
      const status = isWhole ? reply.raw.statusCode : 'client_left'
      requestDuration.observe({ method: request.method, route: url ?? 'none', status }, reply.elapsedTime / 1000)
      request.log.info(
        {
          method: request.method,
          url: request.url.split('?')[0],
          status: reply.raw.statusCode,
          ms: Math.round(reply.elapsedTime),
          ...(!isWhole && { clientLeft: true }),
          ...(instanceId !== undefined && { instanceId }),
          ...(caller && { organizationId: caller.organizationId, keyId: caller.keyId }),
        },
        'request',
      )
    })
  })
}
