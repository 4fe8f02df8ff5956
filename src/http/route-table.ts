import type { FastifyInstance } from 'fastify'
import { closestWord } from '#platform/closest.ts'

/** The methods of each path, such as `/v1/instances/:instance_id`, in the order of their registration. */
export type RouteTable = Map<string, Set<string>>

/** Collects the routes that are registered afterwards. */
export function collectRoutes(app: FastifyInstance): RouteTable {
  const routes: RouteTable = new Map()
  app.addHook('onRoute', ({ url, method }) => {
    const methods = routes.get(url) ?? new Set()
    for (const one of [method].flat()) methods.add(one)
    routes.set(url, methods)
  })
  return routes
}

const isParameter = (segment: string) => segment.startsWith(':')

function matches(pattern: string, path: string): boolean {
  const wanted = pattern.split('/')
  const given = path.split('/')
  const fits = (segment: string, at: number) => (isParameter(segment) ? given[at] !== '' : segment === given[at])
  return wanted.length === given.length && wanted.every(fits)
}

/** The methods of a path, including `OPTIONS`; none when no route has the path. */
export function methodsOf(routes: RouteTable, path: string): string[] {
  const found = [...routes].filter(([pattern]) => matches(pattern, path)).flatMap(([, methods]) => [...methods])
  return found.length === 0 ? [] : [...new Set([...found, 'OPTIONS'])].sort()
}

/** A path with the misspelt words of a pattern corrected; null if the path does not match. */
function corrected(pattern: string, path: string): string | null {
  const wanted = pattern.split('/')
  const given = path.split('/')
  if (wanted.length !== given.length) return null
  const segments = wanted.map((segment, at) => {
    const word = given[at] ?? ''
    if (isParameter(segment)) return word
    return segment === word ? word : closestWord(word, [segment])
  })
  return segments.includes(undefined) ? null : segments.join('/')
}

/** The pattern of a path that lacks only parameters, shown as `{…}`; null if the path does not match. */
function completed(pattern: string, path: string): string | null {
  const given = path.split('/')
  const wanted = pattern.split('/').map((segment, at) => (isParameter(segment) && given[at] === '' ? '' : segment))
  if (!wanted.includes('', 1) || !matches(wanted.join('/'), path)) return null
  const named = pattern.replace(/:(\w+)/g, '{$1}').split('/')
  return given.map((segment, at) => segment || (named[at] ?? '')).join('/')
}

const agent = '/v1/instances/:instance_id'

/** The existing path that the caller most likely meant, with `{…}` for missing parts; null without one. */
export function nearPath(routes: RouteTable, path: string): string | null {
  for (const pattern of routes.keys()) {
    const complete = completed(pattern, path)
    if (complete !== null) return complete
  }
  const plain = path.replace(/\/{2,}/g, '/').replace(/(?<=.)\/$/, '')
  // OpenAI clients elsewhere use a base URL that ends in /v1; here it names the instance.
  const withoutLaterV1 = plain.replace(/(?<=.)\/v1(?=\/)/, '')
  const exact = [plain, `/v1${plain}`, withoutLaterV1].find((one) => methodsOf(routes, one).length > 0)
  if (exact !== undefined) return exact
  const ofAgent = `${agent}${plain.replace(/^\/v1/, '')}`
  if (routes.has(ofAgent)) return ofAgent.replace(/:(\w+)/g, '{$1}')
  for (const pattern of routes.keys()) {
    const near = corrected(pattern, plain)
    if (near !== null) return near
  }
  return null
}
