import { hash, randomBytes } from 'node:crypto'
import { crc32 } from 'node:zlib'
import type { Lease } from '#instances/lease.ts'
import { sealRelayToken, sealToken } from '#instances/row.ts'
import type { Vault } from '#platform/secrets.ts'

const tokenBytes = 32

/** The form of a relay token in the database. */
export const hashRelayToken = (token: string): Buffer => hash('sha256', token, 'buffer')

/** A new token of the gateway. */
export const newToken = (): string => randomBytes(tokenBytes).toString('hex')

const relayTokenFormat = /^([0-9a-f]{56})([0-9a-f]{8})$/
const checksumOf = (text: string): string => crc32(text).toString(16).padStart(8, '0')

/** A new relay token: 56 random hexadecimal digits, and their CRC-32 in 8 more. */
export function newRelayToken(): string {
  const random = newToken().slice(0, 56)
  return random + checksumOf(random)
}

/** Whether a text has the form and the checksum of a relay token; any other text needs no query. */
export function isRelayToken(text: string): boolean {
  const [, random = '', checksum] = relayTokenFormat.exec(text) ?? []
  return checksum === checksumOf(random)
}

/**
 * The agent's token for the egress proxy, derived from its relay token. It expires with that one, and it cannot be used
 * to call models if it leaks from a variable or a program's log.
 */
export const egressToken = (relayToken: string): string => hash('sha256', `chowder egress ${relayToken}`, 'hex')

function sealedRelayToken(vault: Vault, id: string) {
  const token = newRelayToken()
  return { sealedRelayToken: sealRelayToken(vault, id, token), relayTokenHash: hashRelayToken(token) }
}

/**
 * Gives an instance with a stopped gateway new tokens for gateway and relay: tokens that the agent has read before
 * become useless. Written before the gateway gets them, so that a crash in between causes another configuration, and
 * never an unknown token.
 */
export function replaceTokens(lease: Lease, vault: Vault): Promise<void> {
  const { id } = lease.instance
  return lease.write({ sealedToken: sealToken(vault, id, newToken()), ...sealedRelayToken(vault, id) })
}
