import { isIP } from 'node:net'
import { isInRange, readRange } from './addresses.ts'

/** The ports of a rule without ports: those of http and https. */
export const webPorts: readonly number[] = [80, 443]
const maxNameLength = 253
const name = /^[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*$/

/** Permitted hosts and ports. */
export interface HostRule {
  /** A name, `*.` and a name for all names below it, or null for a range of addresses. */
  host: string | null
  /** A range of addresses; null for names. */
  range: string | null
  /** Null means all. */
  ports: readonly number[] | null
}

/**
 * The canonical form of a host: a name in lower case without a trailing dot, in ASCII, or an address without brackets,
 * in its one spelling. Null for an invalid host.
 */
export function readHost(text: string): string | null {
  if (text === '' || /[\s/@?#\\%]/.test(text)) return null
  if (isIP(text) === 6) return readHost(`[${text}]`)
  let hostname: string
  try {
    hostname = new URL(`http://${text}/`).hostname
  } catch {
    return null
  }
  if (hostname.startsWith('[')) return hostname.slice(1, -1)
  const plain = hostname.replace(/\.$/, '')
  return plain.length <= maxNameLength && name.test(plain) ? plain : null
}

/** A number from 1 to 65535; null for any other text. */
export function readPort(text: string): number | null {
  const port = /^[0-9]{1,5}$/.test(text) ? Number(text) : 0
  return port >= 1 && port <= 65_535 ? port : null
}

/** The ports of a rule; undefined for an invalid text. */
function readPorts(text: string | null, mayBeAll: boolean): HostRule['ports'] | undefined {
  if (text === null) return webPorts
  if (text === '*') return mayBeAll ? null : undefined
  const port = readPort(text)
  return port === null ? undefined : [port]
}

/** Whether a rule is for a port. */
export const hasPort = ({ ports }: HostRule, port: number): boolean => ports === null || ports.includes(port)

/** Splits `host:port`, `[address]:port` and a host without a port. */
function split(text: string): { host: string; port: string | null } {
  const bracketed = /^\[([^\]]*)\](?::(.*))?$/.exec(text)
  if (bracketed) return { host: bracketed[1] ?? '', port: bracketed[2] ?? null }
  const colon = text.lastIndexOf(':')
  if (colon === -1 || text.indexOf(':') !== colon) return { host: text, port: null }
  return { host: text.slice(0, colon), port: text.slice(colon + 1) }
}

/**
 * Parses a rule such as `api.example.com`, `*.example.com:443` or `203.0.113.7:8443`; an operator's rule, with
 * `ranges`, may also be `10.0.0.0/8:443` or, for all ports, `10.0.0.0/8:*`. Null for an invalid rule.
 */
export function parseHostRule(text: string, { ranges }: { ranges: boolean }): HostRule | null {
  const { host: written, port: writtenPort } = split(text)
  const ports = readPorts(writtenPort, ranges)
  if (ports === undefined) return null
  if (ranges && written.includes('/')) {
    const range = readRange(written)
    return range === null ? null : { host: null, range, ports }
  }
  const isWildcard = written.startsWith('*.')
  const host = readHost(isWildcard ? written.slice(2) : written)
  if (host === null || (isWildcard && isIP(host) !== 0)) return null
  if (isIP(host) !== 0) return { host: null, range: readRange(host), ports }
  return { host: isWildcard ? `*.${host}` : host, range: null, ports }
}

/** A host and its port in the notation of a rule. */
export const hostAndPort = (host: string, port: number): string =>
  isIP(host) === 6 ? `[${host}]:${port}` : `${host}:${port}`

/** Whether a rule covers a host in the form of `readHost`, whatever its port. */
function isForHost(rule: HostRule, host: string): boolean {
  if (rule.range !== null) return isIP(host) !== 0 && isInRange(host, rule.range)
  if (rule.host?.startsWith('*.')) return host.endsWith(rule.host.slice(1))
  return rule.host === host
}

/** Whether a rule covers all hosts and ports of another one. */
export const covers = (rule: HostRule, other: HostRule): boolean =>
  (rule.ports === null || other.ports?.every((port) => hasPort(rule, port)) === true) && isForHost(rule, hostOf(other))

/** The name of a rule for a name, which may have a wildcard, or the address of a rule for one. */
const hostOf = ({ host, range }: HostRule): string => host ?? range?.split('/', 1).join() ?? ''

/** Whether one of the rules covers a host and a port. */
export const matches = (rules: readonly HostRule[], host: string, port: number): boolean =>
  rules.some((rule) => hasPort(rule, port) && isForHost(rule, host))
