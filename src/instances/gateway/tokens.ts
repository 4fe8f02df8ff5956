import { hash, randomBytes } from 'node:crypto'
import { crc32 } from 'node:zlib'
import type { Lease } from '#instances/lease.ts'
import { sealRelayToken, sealToken } from '#instances/row.ts'
import type { Vault } from '#platform/secrets.ts'

const tokenBytes = 32

/** The form in which the database holds a token of the relay. */
export const hashRelayToken = (token: string): Buffer => hash('sha256', token, 'buffer')

/** Another token of the gateway. */
export const newToken = (): string => randomBytes(tokenBytes).toString('hex')

const relayTokenFormat = /^([0-9a-f]{56})([0-9a-f]{8})$/
const checksumOf = (text: string): string => crc32(text).toString(16).padStart(8, '0')

/** Another token for the relay: 56 random hexadecimal digits, and their CRC-32 in 8 more. */
export function newRelayToken(): string {
  const random = newToken().slice(0, 56)
  return random + checksumOf(random)
}

/** Whether a text has the form and the checksum of a token for the relay: else nobody needs to look it up. */
export function isRelayToken(text: string): boolean {
  const [, random = '', checksum] = relayTokenFormat.exec(text) ?? []
  return checksum === checksumOf(random)
}

/**
 * What an agent shows to the egress proxy, derived from its token for the relay: it ends with that one, and whoever
 * reads it in a variable or in the log of a program cannot ask models with it.
 */
export const egressToken = (relayToken: string): string => hash('sha256', `chowder egress ${relayToken}`, 'hex')

function sealedRelayToken(vault: Vault, id: string) {
  const token = newRelayToken()
  return { sealedRelayToken: sealRelayToken(vault, id, token), relayTokenHash: hashRelayToken(token) }
}

/**
 * Gives an instance whose gateway does not run another token of the gateway, and another one for the relay: what the
 * agent has read of those before is good for nothing. Written before the gateway gets them, so that a crash in between
 * leaves a gateway that is configured again, and never a token that nobody knows of.
 */
export function replaceTokens(lease: Lease, vault: Vault): Promise<void> {
  const { id } = lease.instance
  return lease.write({ sealedToken: sealToken(vault, id, newToken()), ...sealedRelayToken(vault, id) })
}
