import { readFile } from 'node:fs/promises'
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
  const { models, gateway } = JSON.parse(await readFile(`${home}/state/openclaw.json`, 'utf8'))
  const { baseUrl, apiKey } = models.providers.anthropic
  return { home, baseUrl: String(baseUrl), token: String(apiKey), gatewayToken: String(gateway.auth.token) }
}

/** The status with which the relay answers a call that has a token. */
export const relayAnswer = async ({ baseUrl, token }: GatewayTokens): Promise<number> =>
  (await fetch(`${baseUrl}/v1/models`, { headers: { 'x-api-key': token } })).status
