import type { ModelProvider } from '#database/schema.ts'
import type { RelayAddress } from '#instances/regions.ts'
import type { SandboxDriver } from '#sandbox/driver.ts'

/** The address of this host for sandboxes. */
export const sandboxHost = async (
  sandboxes: Pick<SandboxDriver, 'hostAddress'>,
  signal: AbortSignal,
): Promise<string> => (await sandboxes.hostAddress?.(signal)) ?? '127.0.0.1'

/** The URL of the relay for the sandboxes, without a trailing slash. Throws the errors of the driver. */
export async function relayUrlFor(
  sandboxes: Pick<SandboxDriver, 'hostAddress'>,
  { url, port }: RelayAddress,
  signal: AbortSignal,
): Promise<string> {
  return url?.replace(/\/+$/, '') ?? `http://${await sandboxHost(sandboxes, signal)}:${port}`
}

/** The relay's path for the API of a provider. */
export const relayPath = (provider: ModelProvider): string => `/relay/${provider}`
