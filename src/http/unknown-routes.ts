import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { texts } from '#errors/texts.ts'
import type { Failure } from './error-body.ts'
import { collectRoutes, methodsOf, nearPath, type RouteTable } from './route-table.ts'

/** A longer path is cut, so that an answer does not repeat 16 KiB. */
const maxShownCharacters = 200

type SendFailure = (request: FastifyRequest, reply: FastifyReply, failure: Failure) => unknown

function whyUnknown(routes: RouteTable, method: string, path: string): string {
  const detail = texts.noRoute(method, path.slice(0, maxShownCharacters))
  if (path.length > maxShownCharacters) return `${detail} ${texts.routesAt}`
  if (path === '/metrics') return `${detail} ${texts.metricsElsewhere}`
  const near = nearPath(routes, path)
  if (near === null) return `${detail} ${texts.routesAt}`
  const methods = methodsOf(routes, near.replaceAll(/[{}]/g, ''))
  const meant = methods.includes(method) ? method : (methods.find((one) => one !== 'OPTIONS') ?? method)
  return `${detail} ${texts.nearRoute(meant, near)}`
}

/**
 * Answers requests without a route: 405 with `Allow` for a path that has other methods, 204 with `Allow` for OPTIONS, a
 * redirect to `/docs` for a browser at `/`, else 404 with the path that was probably meant. It knows all later routes.
 * Returns the handler.
 */
export function useUnknownRoutes(app: FastifyInstance, send: SendFailure) {
  const routes = collectRoutes(app)
  const answer = (request: FastifyRequest, reply: FastifyReply) => {
    const { method, headers } = request
    const path = request.url.split('?')[0] ?? ''
    const methods = methodsOf(routes, path)
    if (methods.length > 0) {
      reply.header('allow', methods.join(', '))
      if (method === 'OPTIONS') return reply.code(204).send()
      return send(request, reply, { code: 'method_not_allowed', detail: texts.wrongMethod(method, path, methods) })
    }
    // The target is relative: a proxy may serve Chowder below a path of its own.
    if (path === '/' && method === 'GET' && headers.accept?.includes('text/html')) return reply.redirect('docs')
    return send(request, reply, { code: 'unknown_route', detail: whyUnknown(routes, method, path) })
  }
  app.setNotFoundHandler(answer)
  return answer
}
