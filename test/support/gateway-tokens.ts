import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { GatewaySecrets } from '#openclaw/gateway/gateway-secrets.ts'
import { configPath, secretsPath } from '#openclaw/inside/launch.ts'
import { findGateway } from './chowder-process.ts'
import { present } from './present.ts'

/** What the configuration of a running gateway says of the relay, and its own token. */
export interface GatewayTokens {
  /** The folder of its sandbox. */
  home: string
  /** The address of the relay for its provider. */
  baseUrl: string
  /** The token that the relay takes. */
  token: string
  gatewayToken: string
}

/** Reads them from the sandbox of an instance whose provider is Anthropic. */
export async function readGatewayTokens(instanceId: string): Promise<GatewayTokens> {
  const { home } = present(await findGateway(instanceId))
  const read = async (path: string) => JSON.parse(await readFile(join(home, path), 'utf8'))
  const { models } = await read(configPath)
  const { gatewayToken, relayToken }: GatewaySecrets = await read(secretsPath)
  return { home, baseUrl: String(models.providers.anthropic.baseUrl), token: relayToken, gatewayToken }
}

/** The status with which the relay answers a call that has a token. */
export const relayAnswer = async ({ baseUrl, token }: GatewayTokens): Promise<number> =>
  (await fetch(`${baseUrl}/v1/models`, { headers: { 'x-api-key': token } })).status
