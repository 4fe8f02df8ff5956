import { secretsPath } from '#openclaw/inside/launch.ts'
import type { SandboxFiles } from '#sandbox/driver.ts'
import { GatewayRefusal } from './gateway-errors.ts'

/** The content of the file of secrets. */
export interface GatewaySecrets {
  /** The token that callers of the gateway need. */
  gatewayToken: string
  /** The gateway sends it as the provider's key. */
  relayToken: string
  /** The URL of the proxy, if the proxy authenticates agents. */
  proxyUrl?: string
}

/** Installs the file for the gateway's user alone: OpenClaw refuses a file that others may read. */
export async function writeSecrets(files: SandboxFiles, secrets: GatewaySecrets, signal: AbortSignal): Promise<void> {
  const stat = await files.stat(secretsPath, signal)
  if (stat && stat.kind !== 'file') await files.remove(secretsPath, { recursive: true }, signal)
  await files.write(secretsPath, Buffer.from(`${JSON.stringify(secrets, null, 2)}\n`), { mode: 0o600 }, signal)
}

/**
 * Whether a gateway refused a change because it cannot read a secret. Agents can write their own file, and a reference
 * in the overrides may point elsewhere.
 */
export const cannotReadSecrets = (error: unknown): boolean =>
  error instanceof GatewayRefusal && error.message.includes('SecretRef resolution failed')
