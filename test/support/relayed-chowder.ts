import { randomBytes } from 'node:crypto'
import { type EgressSettings, type StartedEgress, startEgress } from '#composition/egress.ts'
import { type RelaySettings, startRelay } from '#composition/relay.ts'
import type { ModelProvider } from '#database/schema.ts'
import { relayPath } from '#instances/gateway/relay-url.ts'
import { hashRelayToken, newRelayToken } from '#instances/gateway/tokens.ts'
import { sealRelayToken } from '#instances/row.ts'
import { freePort } from '#platform/free-port.ts'
import { newId } from '#platform/ids.ts'
import { createVault } from '#platform/secrets.ts'
import { FakeDriver } from './fake-driver.ts'
import { openTestChowder, type TestChowder } from './test-chowder.ts'

/** The organization's keys, by provider. */
export const vendorKeys = { anthropic: 'sk-canary-anthropic', openai: 'sk-canary-openai', gemini: 'canary-gemini' }

export interface RelayedAgent {
  id: string
  token: string
}

/** A Chowder with a relay, and instances that no gateway stands behind. */
export interface RelayedChowder {
  chowder: TestChowder
  organizationId: string
  /** The organization's API key. */
  key: string
  /** What the database is sealed with. */
  secretKey: Buffer
  relayUrl: string
  port: number
  /** The proxy at the port of the relay. */
  egress: StartedEgress
  /** The URL of a path of a provider at the relay. */
  at(provider: ModelProvider, path: string): string
  /** An instance that is to run, with a token. */
  addAgent(provider?: ModelProvider, key?: string): Promise<RelayedAgent>
  /** Gives an instance another token. */
  rotate(id: string): Promise<string>
  /** Gives open calls so many ms to end. */
  close(drainMs?: number): Promise<void>
}

export async function openRelayedChowder(
  vendorUrl: string,
  settings: Partial<RelaySettings> = {},
  egress: EgressSettings = { operatorHosts: [] },
): Promise<RelayedChowder> {
  const secretKey = randomBytes(32)
  const chowder = await openTestChowder({ sandboxes: new FakeDriver(), vault: createVault(secretKey) })
  const { id: organizationId, key } = await chowder.signUp({ providerKey: null })
  await chowder.call('PATCH', '/v1/organization', { key, body: { model_api_keys: vendorKeys } })
  const baseUrls = { anthropic: vendorUrl, openai: vendorUrl, gemini: vendorUrl }
  const { deps } = chowder
  const address = { host: '127.0.0.1', port: await freePort() }
  const proxy = startEgress(deps, egress)
  const relay = await startRelay(deps, { baseUrls, ...address, processId: newId(), proxy, ...settings })
  const relayUrl = `http://127.0.0.1:${relay.port}`

  async function rotate(id: string): Promise<string> {
    const token = newRelayToken()
    await chowder.database.pool.query(
      'UPDATE instances SET relay_token_hash = $2, sealed_relay_token = $3 WHERE id = $1',
      [id, hashRelayToken(token), sealRelayToken(chowder.vault, id, token)],
    )
    return token
  }
  return {
    chowder,
    organizationId,
    key,
    secretKey,
    relayUrl,
    port: relay.port,
    egress: proxy,
    at: (provider, path) => `${relayUrl}${relayPath(provider)}${path}`,
    async addAgent(provider = 'anthropic', owner = key) {
      const body = { name: 'agent', model_provider: provider }
      const { id } = (await chowder.call('POST', '/v1/instances', { key: owner, body })).body
      return { id, token: await rotate(id) }
    },
    rotate,
    async close(drainMs = 0) {
      await relay.close(drainMs)
      await proxy.end()
      await chowder.close()
    },
  }
}
