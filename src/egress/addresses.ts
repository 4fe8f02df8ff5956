import { networkInterfaces } from 'node:os'
import ipaddr from 'ipaddr.js'

const { IPv4, IPv6 } = ipaddr
type Address = ipaddr.IPv4 | ipaddr.IPv6

/** Reads an address; one of IPv4 that is mapped into IPv6 as what it stands for. */
const withoutMapping = (text: string): Address => ipaddr.process(text)

/** The IPv6 addresses that are assigned to be reached from everywhere; all that is public is in it. */
const globalUnicast = IPv6.parseCIDR('2000::/3')
/** Stands for an IPv4 address in networks that have IPv6 alone. */
const nat64 = IPv6.parseCIDR('64:ff9b::/96')
/** Public addresses at which a cloud has its own service for each of its machines: Azure's. */
const platformAddresses = new Set(['168.63.129.16'])

/** The IPv4 address within one of IPv6 that stands for it; null for others. */
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

function isOfThisHost(address: Address): boolean {
  const text = address.toString()
  return Object.values(networkInterfaces()).some((entries) =>
    entries?.some((entry) => withoutMapping(entry.address.split('%')[0] ?? '').toString() === text),
  )
}

/**
 * Whether an address is one that everybody on the internet reaches alike: no private, loopback, link-local, shared,
 * multicast or reserved one, no service of a cloud for its own machines, also not behind an address of IPv6 that
 * stands for one of IPv4, and none of this host, whose firewall lets itself through.
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

/** A range as it is written shortest, or null for what is none. An address alone is a range of one. */
export function readRange(text: string): string | null {
  try {
    const [address, bits] = text.includes('/') ? ipaddr.parseCIDR(text) : [ipaddr.parse(text), null]
    return `${address.toString()}/${bits ?? (address.kind() === 'ipv4' ? 32 : 128)}`
  } catch {
    return null
  }
}
