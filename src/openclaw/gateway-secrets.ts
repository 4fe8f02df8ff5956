import type { SandboxFiles } from '#sandbox/driver.ts'
import { GatewayRefusal } from './gateway-errors.ts'
import { secretsPath } from './launch.ts'

/** The content of the file of secrets. */
export interface GatewaySecrets {
  /** By which the gateway lets its callers in. */
  gatewayToken: string
  /** What it sends as the provider's key. */
  relayToken: string
  /** Of the proxy, where it asks who the agent is. */
  proxyUrl?: string
}

/** Puts the file in its place, for the gateway's user alone: OpenClaw reads no other one. */
export async function writeSecrets(files: SandboxFiles, secrets: GatewaySecrets, signal: AbortSignal): Promise<void> {
  const stat = await files.stat(secretsPath, signal)
  if (stat && stat.kind !== 'file') await files.remove(secretsPath, { recursive: true }, signal)
  await files.write(secretsPath, Buffer.from(`${JSON.stringify(secrets, null, 2)}\n`), { mode: 0o600 }, signal)
}

/**
 * Whether a gateway refused a change because it cannot read a secret. Agents can write the file of theirs; a reference of
 * the overrides leads elsewhere.
 */
export const cannotReadSecrets = (error: unknown): boolean =>
  error instanceof GatewayRefusal && error.message.includes('SecretRef resolution failed')
