import type { IncomingHttpHeaders } from 'node:http'
import { type ModelProvider, modelProviders } from '#database/schema.ts'
import { relayPath } from '#instances/gateway/relay-url.ts'
import { vendors } from './vendors.ts'

/** What a call is for. */
export interface Target {
  provider: ModelProvider
  /** Whether the provider has such a route. */
  isAllowed: boolean
  path: string
  /** The query with its `?`, without a key; empty without one. */
  query: string
  /** The token that came with the call; null without one. */
  token: string | null
}

const isKey = (parameter: string): boolean => {
  const [name = ''] = parameter.split('=')
  try {
    return decodeURIComponent(name.replaceAll('+', ' ')) === 'key'
  } catch {
    return false
  }
}

/** The token, wherever a client of one of the vendors may put its key. */
function tokenOf(headers: IncomingHttpHeaders, keys: readonly string[]): string | null {
  const [, bearer] = /^Bearer +(\S+)$/i.exec(headers.authorization ?? '') ?? []
  const own = headers['x-api-key'] ?? headers['x-goog-api-key'] ?? bearer ?? keys[0]?.split('=')[1]
  return typeof own === 'string' && own !== '' ? own : null
}

/** Reads the URL of a request; null when it is for no provider. Nothing of the URL is decoded. */
export function readTarget(method: string, url: string, headers: IncomingHttpHeaders): Target | null {
  const [whole = '', ...rest] = url.split('?')
  const provider = modelProviders.find((name) => whole.startsWith(`${relayPath(name)}/`))
  if (provider === undefined) return null
  const path = whole.slice(relayPath(provider).length)
  const parameters = rest.length === 0 ? [] : rest.join('?').split('&')
  const others = parameters.filter((parameter) => !isKey(parameter))
  return {
    provider,
    path,
    isAllowed: vendors[provider].routes.some((route) => route.method === method && route.path.test(path)),
    query: others.length === 0 ? '' : `?${others.join('&')}`,
    token: tokenOf(headers, parameters.filter(isKey)),
  }
}
