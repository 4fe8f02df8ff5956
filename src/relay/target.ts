import type { IncomingHttpHeaders } from 'node:http'
import { type ModelProvider, modelProviders } from '#database/schema.ts'
import { relayPath } from '#instances/gateway/relay-url.ts'
import { vendors } from './vendors.ts'

/** The target of a call. */
export interface Target {
  provider: ModelProvider
  /** Whether the provider has such a route. */
  isAllowed: boolean
  path: string
  /** The query with its `?`, reduced to permitted parameters; empty without one. */
  query: string
  /** The token of the call; null without one. */
  token: string | null
}

/**
 * The permitted parameters of a query: of streams, of beta features, and of pages. They exclude keys, and parameters
 * that change the method, headers or account on some servers.
 */
const queryParameters = new Set(['after_id', 'alt', 'before_id', 'beta', 'limit', 'pageSize', 'pageToken'])

/** The token, in any of the places where the vendors' clients put their key. */
function tokenOf(headers: IncomingHttpHeaders, parameters: readonly string[]): string | null {
  const [, bearer] = /^Bearer +(\S+)$/i.exec(headers.authorization ?? '') ?? []
  const key = parameters.find((parameter) => parameter.startsWith('key='))?.slice('key='.length)
  const own = headers['x-api-key'] ?? headers['x-goog-api-key'] ?? bearer ?? key
  return typeof own === 'string' && own !== '' ? own : null
}

/** Parses the URL of a request; null if it is for no provider. Decodes nothing. */
export function readTarget(method: string, url: string, headers: IncomingHttpHeaders): Target | null {
  const [whole = '', ...rest] = url.split('?')
  const provider = modelProviders.find((name) => whole.startsWith(`${relayPath(name)}/`))
  if (provider === undefined) return null
  const path = whole.slice(relayPath(provider).length)
  const parameters = rest.join('?').split('&')
  const passed = parameters.filter((parameter) => queryParameters.has(parameter.split('=', 1).join()))
  return {
    provider,
    path,
    isAllowed: vendors[provider].routes.some((route) => route.method === method && route.path.test(path)),
    query: passed.length === 0 ? '' : `?${passed.join('&')}`,
    token: tokenOf(headers, parameters),
  }
}
