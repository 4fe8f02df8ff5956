import { isIPv4, isIPv6 } from 'node:net'
import type { Config } from './env.ts'

type HostSettings = Pick<Config, 'HOST' | 'CHOWDER_PUBLIC_URL' | 'CHOWDER_ALLOWED_HOSTS'>
type SignupSettings = HostSettings & Pick<Config, 'SIGNUP' | 'TRUST_PROXY'>

/** Who may sign up: anybody, who has the token of the operator, or nobody. */
export type SignupMode = NonNullable<Config['SIGNUP']>

/** This machine, as a Host header names it. No page of another site is served under these names. */
const loopbackNames = ['localhost', '127.0.0.1', '[::1]']

/** The entries of a setting that is a list. */
export const entriesOf = (list: string | undefined): string[] => list?.split(',').map((entry) => entry.trim()) ?? []

/** A host as it is in a Host header. */
const headerForm = (host: string): string => (isIPv6(host) ? `[${host}]` : host).toLowerCase()

/** Whether the name or address of a host is this machine's own. */
export const isLoopback = (host: string): boolean =>
  host.toLowerCase() === 'localhost' || host === '::1' || (isIPv4(host) && host.startsWith('127.'))

/** The hosts that the settings name beside HOST, as in a Host header; `*` is any. */
const namedHosts = ({ CHOWDER_PUBLIC_URL: url, CHOWDER_ALLOWED_HOSTS: list }: HostSettings): string[] => [
  ...(url === undefined ? [] : [new URL(url).hostname]),
  ...entriesOf(list).map((host) => host.toLowerCase()),
]

/**
 * The hosts that requests may be addressed to, as in a Host header without a port; null for any. Without a limit, a
 * page whose name is made to lead to this machine (DNS rebinding) would be a page of the API's own origin. An API that
 * others reach is not limited before a setting names a host: nobody else knows its names.
 */
export function allowedHosts(settings: HostSettings): ReadonlySet<string> | null {
  const named = namedHosts(settings)
  if (named.includes('*') || (named.length === 0 && !isLoopback(settings.HOST))) return null
  return new Set([...loopbackNames, headerForm(settings.HOST), ...named])
}

/** Whether requests may be addressed to any host because nobody has decided about it. */
export const isHostUndecided = (settings: HostSettings): boolean =>
  allowedHosts(settings) === null && settings.CHOWDER_ALLOWED_HOSTS === undefined

/** The origins of web pages that may call the API, beside its own. */
export const corsOrigins = ({ CORS_ALLOWED_ORIGINS: list }: Pick<Config, 'CORS_ALLOWED_ORIGINS'>): string[] =>
  entriesOf(list).map((origin) => new URL(origin).origin)

/** The origin that CHOWDER_PUBLIC_URL gives the pages of the API; null without it. */
export const publicOrigin = ({ CHOWDER_PUBLIC_URL: url }: Pick<Config, 'CHOWDER_PUBLIC_URL'>): string | null =>
  url === undefined ? null : new URL(url).origin

/** Whether the settings say that only this machine reaches the API: nothing leads others to it. */
export const isOnlyLocal = (settings: SignupSettings): boolean =>
  isLoopback(settings.HOST) &&
  settings.TRUST_PROXY === 0 &&
  namedHosts(settings).every((host) => isLoopback(host) || loopbackNames.includes(host))

/** By default anybody may sign up while only this machine reaches the API, and who has the token otherwise. */
export const signupMode = (settings: SignupSettings): SignupMode =>
  settings.SIGNUP ?? (isOnlyLocal(settings) ? 'open' : 'token')

/** Whether sign-up is open to others than this machine, which no setting allows. */
export const isOpenToOthers = (settings: SignupSettings): boolean =>
  settings.SIGNUP === 'open' && !isOnlyLocal(settings)
