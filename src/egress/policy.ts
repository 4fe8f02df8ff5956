import { isIP } from 'node:net'
import type { EgressPolicy } from '#database/schema.ts'
import { isPublicAddress } from './addresses.ts'
import { covers, type HostRule, hasPort, matches, parseHostRule, readHost, readPort, webPorts } from './hosts.ts'

/** Mail servers accept mail there from any host: an agent could send spam in the name of this one. */
const mailPort = 25
const httpPort = 80

/** The policy if neither the instance nor its organization has one. */
export const defaultPolicy: EgressPolicy = { mode: 'open', hosts: [] }

/** The reason why a connection is refused. */
export type BlockReason = 'egress_none' | 'not_listed' | 'port' | 'mail_port' | 'private_address'

/** A policy with its hosts in canonical form. */
export interface Rules {
  mode: EgressPolicy['mode']
  hosts: readonly HostRule[]
}

type Decision =
  /** `isListed`: an allow-list with the hosts of the policy would permit it as well. */
  { isAllowed: true; isListed: boolean } | { isAllowed: false; reason: BlockReason }

/** A requested host, in the form of `readHost`. */
export interface Destination {
  host: string
  port: number
}

/** The target of a request to the proxy: a tunnel to a destination, or one request to it without TLS. */
export interface Target extends Destination {
  /** The path with the query of a request, and its Host header; null for a tunnel. */
  request: { path: string; hostHeader: string } | null
}

/** Reads `host:port` of a CONNECT. */
function readAuthority(text: string): Target | null {
  const [, written = '', writtenPort = ''] = /^(\[[^\]]+\]|[^:]+):([0-9]+)$/.exec(text) ?? []
  const host = readHost(written)
  const port = readPort(writtenPort)
  return host === null || port === null ? null : { host, port, request: null }
}

/** Parses the target of a request line; null if a proxy does not serve it. */
export function readTarget(method: string, url: string): Target | null {
  if (method === 'CONNECT') return readAuthority(url)
  if (!URL.canParse(url)) return null
  const { protocol, hostname, port, host: hostHeader, pathname, search } = new URL(url)
  const host = readHost(hostname)
  if (protocol !== 'http:' || host === null) return null
  return { host, port: port === '' ? httpPort : Number(port), request: { path: pathname + search, hostHeader } }
}

const blocked = (reason: BlockReason): Decision => ({ isAllowed: false, reason })

/** Parses the hosts of a policy. An invalid rule, which the API does not accept, permits nothing. */
export const readRules = ({ mode, hosts }: EgressPolicy): Rules => ({
  mode,
  hosts: hosts.flatMap((text) => parseHostRule(text, { ranges: false }) ?? []),
})

/** Whether a policy lets any public host through. */
export const isOpen = ({ mode }: EgressPolicy) => mode === 'open' || mode === 'report'

/**
 * The policy of an instance within that of its organization, which is its ceiling; null is the other one's. Under an
 * allow-list remain the hosts of the instance that one entry of the organization covers whole.
 */
export function withinCeiling(own: EgressPolicy | null, ceiling: EgressPolicy | null): EgressPolicy {
  if (!own || !ceiling) return own ?? ceiling ?? defaultPolicy
  if (own.mode === 'none' || isOpen(ceiling)) return own
  if (ceiling.mode === 'none' || isOpen(own)) return ceiling
  const rules = readRules(ceiling).hosts
  const isCovered = (text: string) => {
    const host = parseHostRule(text, { ranges: false })
    return host !== null && rules.some((rule) => covers(rule, host))
  }
  return { mode: 'allowlist', hosts: own.hosts.filter(isCovered) }
}

/** Whether a policy permits nothing that another one refuses. */
export function isWithin(policy: EgressPolicy, ceiling: EgressPolicy): boolean {
  const { mode, hosts } = withinCeiling(policy, ceiling)
  return mode === policy.mode && hosts.length === policy.hosts.length
}

/**
 * Decides by the name alone, with `addresses` null, or also by all addresses of the name. A name that the first
 * decision refuses must not be resolved: the query itself would leak to the owner of the name.
 */
export type Decide = (rules: Rules, destination: Destination, addresses: readonly string[] | null) => Decision

/**
 * Decides which hosts instances may reach. `operator` are the rules for all instances: hosts that need not be public.
 */
export function createDecide(operator: readonly HostRule[]): Decide {
  return ({ mode, hosts }, { host, port }, addresses) => {
    if (port === mailPort) return blocked('mail_port')
    if (mode === 'none') return blocked('egress_none')
    const isListed = matches(hosts, host, port)
    if (mode === 'allowlist' && !isListed) return blocked('not_listed')
    const known = isIP(host) === 0 ? addresses : [host]
    const isOfOperator = matches(operator, host, port)
    const mayBeOfOperator =
      isOfOperator || (known === null && operator.some((rule) => rule.range !== null && hasPort(rule, port)))
    const isUsualPort = webPorts.includes(port) || isListed
    if (known === null) return isUsualPort || mayBeOfOperator ? { isAllowed: true, isListed } : blocked('port')
    const isReached = (address: string) => isOfOperator || matches(operator, address, port)
    const others = known.filter((address) => !isReached(address))
    if (others.some((address) => !isPublicAddress(address))) return blocked('private_address')
    return others.length === 0 || isUsualPort ? { isAllowed: true, isListed } : blocked('port')
  }
}
