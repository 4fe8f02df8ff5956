import { networkInterfaces } from 'node:os'
import ipaddr from 'ipaddr.js'

const { IPv4, IPv6 } = ipaddr
type Address = ipaddr.IPv4 | ipaddr.IPv6

/** Parses an address; converts an IPv4 address mapped into IPv6 to IPv4. */
const withoutMapping = (text: string): Address => ipaddr.process(text)

/** The IPv6 range of globally reachable addresses; it contains all public ones. */
const globalUnicast = IPv6.parseCIDR('2000::/3')
/** The prefix of IPv4 addresses in IPv6-only networks. */
const nat64 = IPv6.parseCIDR('64:ff9b::/96')
/** Public addresses of a cloud's services for its own machines: Azure's. */
const platformAddresses = new Set(['168.63.129.16'])

/** The IPv4 address embedded in an IPv6 address; null for others. */
function embedded(address: ipaddr.IPv6): ipaddr.IPv4 | null {
  const bytes = address.toByteArray()
  if (address.match(nat64)) return new IPv4(bytes.slice(12))
  return address.range() === '6to4' ? new IPv4(bytes.slice(2, 6)) : null
}

function isPublicUnicast(address: Address): boolean {
  if (address instanceof IPv4) return address.range() === 'unicast' && !platformAddresses.has(address.toString())
  const within = embedded(address)
  if (within) return isPublicUnicast(within)
  return address.range() === 'unicast' && address.match(globalUnicast)
}

/** The kernel lists the addresses of this host under a lock that each start of a sandbox takes, so its list is kept. */
const keptMs = 5000
let ownAddresses = new Set<string>()
let readAt = Number.NEGATIVE_INFINITY

function isOfThisHost(address: Address): boolean {
  const now = performance.now()
  if (now - readAt > keptMs) {
    const entries = Object.values(networkInterfaces()).flatMap((of) => of ?? [])
    ownAddresses = new Set(entries.map((entry) => withoutMapping(entry.address.split('%')[0] ?? '').toString()))
    readAt = now
  }
  return ownAddresses.has(address.toString())
}

/**
 * Whether an address is public on the internet: not private, loopback, link-local, shared, multicast or reserved, no
 * service of a cloud for its own machines, no IPv6 address that embeds such an IPv4 address, and no address that this
 * host had 5 s ago or has now, whose firewall accepts its own connections.
 */
export function isPublicAddress(text: string): boolean {
  const address = withoutMapping(text)
  return isPublicUnicast(address) && !isOfThisHost(address)
}

/** Whether an address is in a range such as 10.0.0.0/8; false for a range of the other kind of address. */
export function isInRange(text: string, range: string): boolean {
  const address = withoutMapping(text)
  const [network, bits] = ipaddr.parseCIDR(range)
  return address.kind() === network.kind() && address.match([network, bits])
}

/** A range in its shortest form, or null for an invalid one. An address alone is a range of one. */
export function readRange(text: string): string | null {
  try {
    const [address, bits] = text.includes('/') ? ipaddr.parseCIDR(text) : [ipaddr.parse(text), null]
    return `${address.toString()}/${bits ?? (address.kind() === 'ipv4' ? 32 : 128)}`
  } catch {
    return null
  }
}
