import { hash, randomBytes } from 'node:crypto'
import type { Lease } from '#instances/lease.ts'
import { sealRelayToken } from '#instances/row.ts'
import type { Vault } from '#platform/secrets.ts'

const tokenBytes = 32

/** The form in which the database holds a token of the relay. */
export const hashRelayToken = (token: string): Buffer => hash('sha256', token, 'buffer')

/**
 * Gives an instance another token for the relay: the one before is refused within a second. Written before the gateway
 * gets it, so that a crash in between leaves a gateway that is configured again, and never a token that nobody knows
 * of.
 */
export function replaceRelayToken(lease: Lease, vault: Vault): Promise<void> {
  const token = randomBytes(tokenBytes).toString('hex')
  const { id } = lease.instance
  return lease.write({ sealedRelayToken: sealRelayToken(vault, id, token), relayTokenHash: hashRelayToken(token) })
}

/**
 * Gives a gateway that runs a token for the relay unless it has a valid one. It has none when it was started by a
 * version without a relay, and when it was to be stopped and runs all the same.
 */
export async function ensureRelayToken(lease: Lease, vault: Vault): Promise<void> {
  const { sealedRelayToken, relayTokenHash } = lease.instance
  if (sealedRelayToken === null || relayTokenHash === null) await replaceRelayToken(lease, vault)
}
