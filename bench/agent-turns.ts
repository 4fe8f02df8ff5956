import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { connectGateway, type GatewayClient } from '#openclaw/gateway/gateway.ts'
import type { GatewaySecrets } from '#openclaw/gateway/gateway-secrets.ts'
import { secretsPath } from '#openclaw/inside/launch.ts'
import { isObject } from '#openclaw/json.ts'
import { newId } from '#platform/ids.ts'
import { type FakeModelProvider, startFakeModelProvider } from '../test/support/fake-model-provider.mjs'
import { createAgent, secondsOf, until, withChowder } from './agents.ts'
import { measureBackgroundTurns } from './background-turns.ts'
import { type Fact, type Figure, figure, type Round } from './figures.ts'
import type { Tenant } from './tenant.ts'

const startTimeoutMs = 3 * 60_000
const changeTimeoutMs = 60_000
const rounds = 4
const turnsOneByOne = 10
const together = 6
const turnsTogether = 3

/** How the agent reaches the stub of its provider. The key tells the stub which way a call came. */
interface Way {
  baseUrl: string
  apiKey: string | object
}

async function connectTo(dataDir: string, id: string): Promise<{ gateway: GatewayClient; relayed: Way }> {
  const record = JSON.parse(await readFile(join(dataDir, 'sandboxes', id, 'sandbox.json'), 'utf8'))
  const { OPENCLAW_CONFIG_PATH: configFile } = record.env
  const config = JSON.parse(await readFile(configFile, 'utf8'))
  const { gatewayToken }: GatewaySecrets = JSON.parse(await readFile(join(configFile, '../..', secretsPath), 'utf8'))
  const endpoint = { kind: 'tcp', host: '127.0.0.1', port: config.gateway.port } as const
  const signal = AbortSignal.timeout(startTimeoutMs * rounds)
  const gateway = await connectGateway(endpoint, gatewayToken, { signal, timeoutMs: changeTimeoutMs })
  const { baseUrl, apiKey } = config.models.providers.anthropic
  return { gateway, relayed: { baseUrl, apiKey } }
}

/** Has the running gateway call its provider in another way. */
async function changeWay(gateway: GatewayClient, way: Way): Promise<void> {
  const shown = await gateway.call('config.get')
  const baseHash = isObject(shown) ? shown.hash : undefined
  const raw = JSON.stringify({ models: { providers: { anthropic: way } } })
  await gateway.call('config.patch', { raw, baseHash }, { timeoutMs: changeTimeoutMs })
}

async function turn(tenant: Tenant, id: string, session: string, input = 'Hello'): Promise<void> {
  const path = `/v1/instances/${id}/session/${session}/responses`
  const { status } = await tenant.call<{ status: string }>('POST', path, { model: 'openclaw', input })
  if (status !== 'completed') throw new Error(`a turn ended as ${status}`)
}

/** Turns of a new session, one after the other. */
export async function turnsInTurn(tenant: Tenant, id: string, count: number, input?: string): Promise<void> {
  const session = newId()
  for (let made = 0; made < count; made += 1) await turn(tenant, id, session, input)
}

/** Turns a second: one after the other, and of several sessions at once. */
async function measureWay(tenant: Tenant, id: string) {
  const alone = await secondsOf(() => turnsInTurn(tenant, id, turnsOneByOne))
  const sessions = Array.from({ length: together }, () => turnsTogether)
  const beside = await secondsOf(() => Promise.all(sessions.map((count) => turnsInTurn(tenant, id, count))))
  return { alone: turnsOneByOne / alone, beside: (together * turnsTogether) / beside }
}

/**
 * Turns a second of a real agent, one after the other and several at once, beside the same agent with a configuration
 * by which it asks the stub of its provider without the relay; in turn, and the one that is first changes. Then turns
 * in the background.
 */
export async function measureAgentTurns(report: (text: string) => void): Promise<(Fact | Figure)[]> {
  const provider = await startFakeModelProvider()
  try {
    // In a jail the agent would reach the relay alone.
    const env = { ANTHROPIC_BASE_URL: provider.url, LOCAL_ISOLATION: 'none' }
    return await withChowder(env, report, async ({ tenant, dataDir }) => {
      report('a real agent')
      const id = await createAgent(tenant, startTimeoutMs)
      const { gateway, relayed } = await connectTo(dataDir, id)
      try {
        const direct = { baseUrl: provider.url, apiKey: 'bench-direct' }
        const beside = await measureBoth(tenant, id, gateway, provider, { relayed, direct }, report)
        return [...beside, ...(await measureBackgroundTurns(tenant, id, report))]
      } finally {
        gateway.close()
      }
    })
  } finally {
    await provider.close()
  }
}

async function measureBoth(
  tenant: Tenant,
  id: string,
  gateway: GatewayClient,
  provider: FakeModelProvider,
  { relayed, direct }: { relayed: Way; direct: Way },
  report: (text: string) => void,
): Promise<Figure[]> {
  const take = async (way: Way) => {
    await changeWay(gateway, way)
    await until('the other way to the provider', changeTimeoutMs, async () => {
      provider.reset()
      await turn(tenant, id, newId())
      return provider.requests.every(({ key }) => (key === direct.apiKey) === (way === direct))
    })
    return measureWay(tenant, id)
  }
  const alone: Round[] = []
  const beside: Round[] = []
  await measureWay(tenant, id) // does not count
  for (let round = 0; round < rounds; round += 1) {
    report(`turns of the agent with the relay and without, round ${round + 1} of ${rounds}`)
    const first = await take(round % 2 === 0 ? direct : relayed)
    const second = await take(round % 2 === 0 ? relayed : direct)
    const [without, through] = round % 2 === 0 ? [first, second] : [second, first]
    alone.push({ chowder: through.alone, limit: without.alone })
    beside.push({ chowder: through.beside, limit: without.beside })
  }
  return [
    figure('agent, turns', '/s', { atLeast: 0.9 }, alone),
    figure(`agent, ${together} turns at once`, '/s', { atLeast: 0.8 }, beside),
  ]
}
