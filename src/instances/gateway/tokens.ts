import { hash, randomBytes } from 'node:crypto'
import type { Lease } from '#instances/lease.ts'
import { sealRelayToken, sealToken } from '#instances/row.ts'
import type { Vault } from '#platform/secrets.ts'

const tokenBytes = 32

/** The form in which the database holds a token of the relay. */
export const hashRelayToken = (token: string): Buffer => hash('sha256', token, 'buffer')

/** Another token, of the gateway or for the relay. */
export const newToken = (): string => randomBytes(tokenBytes).toString('hex')

function newRelayToken(vault: Vault, id: string) {
  const token = newToken()
  return { sealedRelayToken: sealRelayToken(vault, id, token), relayTokenHash: hashRelayToken(token) }
}

/**
 * Gives an instance whose gateway does not run another token of the gateway, and another one for the relay: what the
 * agent has read of those before is good for nothing. Written before the gateway gets them, so that a crash in between
 * leaves a gateway that is configured again, and never a token that nobody knows of.
 */
export function replaceTokens(lease: Lease, vault: Vault): Promise<void> {
  const { id } = lease.instance
  return lease.write({ sealedToken: sealToken(vault, id, newToken()), ...newRelayToken(vault, id) })
}

/**
 * Gives a gateway that runs a token for the relay unless it has a valid one. It has none when it was started by a
 * version without a relay, and when it was to be stopped and runs all the same.
 */
export async function ensureRelayToken(lease: Lease, vault: Vault): Promise<void> {
  const { id, sealedRelayToken, relayTokenHash } = lease.instance
  if (sealedRelayToken === null || relayTokenHash === null) await lease.write(newRelayToken(vault, id))
}
