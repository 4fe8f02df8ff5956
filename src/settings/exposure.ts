import { isIPv4, isIPv6 } from 'node:net'
import type { Config } from './env.ts'

type HostSettings = Pick<Config, 'HOST' | 'CHOWDER_PUBLIC_URL' | 'CHOWDER_ALLOWED_HOSTS'>
type SignupSettings = HostSettings & Pick<Config, 'SIGNUP' | 'TRUST_PROXY'>

/** Who may sign up: everybody, holders of the operator's token, or nobody. */
export type SignupMode = NonNullable<Config['SIGNUP']>

/** This machine in a Host header. No page of another site has these names. */
const loopbackNames = ['localhost', '127.0.0.1', '[::1]']

/** The entries of a list setting. */
export const entriesOf = (list: string | undefined): string[] => list?.split(',').map((entry) => entry.trim()) ?? []

/** The host of a Host header. */
const headerForm = (host: string): string => (isIPv6(host) ? `[${host}]` : host).toLowerCase()

/** Whether the name or address of a host is this machine's own. */
export const isLoopback = (host: string): boolean =>
  host.toLowerCase() === 'localhost' || host === '::1' || (isIPv4(host) && host.startsWith('127.'))

/** The hosts in the settings besides HOST, as in a Host header; `*` means any. */
const namedHosts = ({ CHOWDER_PUBLIC_URL: url, CHOWDER_ALLOWED_HOSTS: list }: HostSettings): string[] => [
  ...(url === undefined ? [] : [new URL(url).hostname]),
  ...entriesOf(list).map((host) => host.toLowerCase()),
]

/**
 * The permitted hosts of requests, as in a Host header without a port; null means any. Without a limit, a page whose
 * name resolves to this machine (DNS rebinding) would have the API's own origin. A reachable API is not limited until a
 * setting names a host, because only the operator knows its names.
 */
export function allowedHosts(settings: HostSettings): ReadonlySet<string> | null {
  const named = namedHosts(settings)
  if (named.includes('*') || (named.length === 0 && !isLoopback(settings.HOST))) return null
  return new Set([...loopbackNames, headerForm(settings.HOST), ...named])
}

/** Whether requests may be addressed to any host because no setting restricts it. */
export const isHostUndecided = (settings: HostSettings): boolean =>
  allowedHosts(settings) === null && settings.CHOWDER_ALLOWED_HOSTS === undefined

/** The origins of web pages that may call the API, besides its own. */
export const corsOrigins = ({ CORS_ALLOWED_ORIGINS: list }: Pick<Config, 'CORS_ALLOWED_ORIGINS'>): string[] =>
  entriesOf(list).map((origin) => new URL(origin).origin)

/** The origin of the API's pages from CHOWDER_PUBLIC_URL; null without it. */
export const publicOrigin = ({ CHOWDER_PUBLIC_URL: url }: Pick<Config, 'CHOWDER_PUBLIC_URL'>): string | null =>
  url === undefined ? null : new URL(url).origin

/** Whether only this machine reaches the API, according to the settings. */
export const isOnlyLocal = (settings: SignupSettings): boolean =>
  isLoopback(settings.HOST) &&
  settings.TRUST_PROXY === 0 &&
  namedHosts(settings).every((host) => isLoopback(host) || loopbackNames.includes(host))

/** The default: open sign-up while only this machine reaches the API, otherwise with the token. */
export const signupMode = (settings: SignupSettings): SignupMode =>
  settings.SIGNUP ?? (isOnlyLocal(settings) ? 'open' : 'token')

/** Whether sign-up is open to other machines, which is not permitted. */
export const isOpenToOthers = (settings: SignupSettings): boolean =>
  settings.SIGNUP === 'open' && !isOnlyLocal(settings)
