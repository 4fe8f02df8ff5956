import cors from '@fastify/cors'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'

/** The hosts that requests may be addressed to, and the origins of web pages that may send them. */
export interface RequestOrigins {
  /** Hosts as in a Host header, without a port; null for any. */
  hosts: ReadonlySet<string> | null
  /** The origin of the API's own pages where a proxy has replaced the Host header; null if no setting names it. */
  own: string | null
  /** Other origins, whose pages may make calls with scoped keys. */
  foreign: readonly string[]
}

declare module 'fastify' {
  interface FastifyContextConfig {
    /** The route answers any Host header and origin, because probes know only an address. */
    answersEverybody?: boolean
  }
  interface FastifyRequest {
    /** Whether the request comes from a web page of an allowed foreign origin. */
    isOfForeignPage: boolean
  }
}

/** A host with or without a port. */
const hostHeader = /^(\[[0-9a-f:.]+\]|[^:@/[\]]+)(?::\d+)?$/i

const isAddressedTo = (hosts: ReadonlySet<string>, header: string): boolean => {
  const name = hostHeader.exec(header)?.[1]
  return name !== undefined && hosts.has(name.toLowerCase())
}

/** A link from another page leads here: that page cannot read the answer. */
const isNavigation = ({ method, headers }: FastifyRequest): boolean =>
  method === 'GET' && headers['sec-fetch-mode'] === 'navigate' && headers['sec-fetch-dest'] === 'document'

/** Whether a browser sends the request for a page of another origin than this server's. */
function isForeign(request: FastifyRequest, own: string | null): boolean {
  const { host, origin, 'sec-fetch-site': site } = request.headers
  if (origin !== undefined) return origin !== own && origin !== `http://${host}` && origin !== `https://${host}`
  return (site === 'cross-site' || site === 'same-site') && !isNavigation(request)
}

const isSafe = (method: string): boolean => ['GET', 'HEAD', 'OPTIONS'].includes(method)

/** Headers of answers that browsers otherwise hide from a page. */
const answerHeaders = [
  ...['content-disposition', 'content-range', 'idempotent-replayed', 'link', 'ratelimit', 'ratelimit-policy'],
  ...['retry-after', 'x-next-cursor', 'x-request-id', 'x-should-retry'],
]
const preflightSeconds = 600

/**
 * Refuses requests that are addressed to another host, and those of web pages of foreign origins. Pages of allowed
 * foreign origins get CORS answers, and may read public data; `useApiKeys` requires a scoped key for their other calls.
 */
export async function useOrigins(app: FastifyInstance, { hosts, own, foreign }: RequestOrigins): Promise<void> {
  app.decorateRequest('isOfForeignPage', false)
  app.addHook('onRequest', (request, _reply, done) => {
    const { headers, method } = request
    const { answersEverybody, access } = request.routeOptions.config
    if (answersEverybody) return done()
    const { host = '', origin } = headers
    if (hosts && !isAddressedTo(hosts, host)) return done(new AppError('unknown_host', texts.unknownHost(host)))
    if (!isForeign(request, own)) return done()
    if (origin === undefined || !foreign.includes(origin))
      return done(new AppError('foreign_origin', texts.foreignOrigin(origin)))
    request.isOfForeignPage = true
    const isOpenCall = access === 'public' && !isSafe(method)
    done(isOpenCall ? new AppError('lacks_permission', texts.needsScopedKey) : undefined)
  })
  if (foreign.length === 0) return
  await app.register(cors, {
    delegator: ({ isOfForeignPage, headers }, callback) =>
      callback(null, {
        origin: isOfForeignPage && [...foreign],
        preflight: headers['access-control-request-method'] !== undefined,
        methods: ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE'],
        exposedHeaders: answerHeaders,
        maxAge: preflightSeconds,
      }),
  })
}
