import { randomBytes } from 'node:crypto'
import type pg from 'pg'
import { hashRelayToken } from '#instances/gateway/tokens.ts'
import { freePort } from '#platform/free-port.ts'
import { type ChowderOptions, startChowder } from '../demo/chowder-process.ts'
import { present } from '../test/support/present.ts'
import { type Figure, figure, type Round } from './figures.ts'
import { json, type Owner, type Request, type Setup } from './setup.ts'
import { openStreamsMb } from './streams.ts'

const streams = 500
/** The limits of its cost: for a call that is made alone, and for the memory of 500 open streams. */
const mostAddedMs = 1
const mostStreamsMb = 100
/** Of the check of a budget of which most is left. */
const mostBudgetMs = 0.2

interface RelaySetup extends Pick<Setup, 'load'> {
  pool: pg.Pool
  chowder: Omit<ChowderOptions, 'role'>
  apiUrl: string
  /** The stub that stands for OpenAI. */
  vendorPort: number
  owners: Owner[]
  rounds: number
  roundMs: number
}

/** Gives each owner's instance a token, and its organization a key for the stub. */
async function makeTokens({ pool, apiUrl, owners }: RelaySetup): Promise<string[]> {
  return Promise.all(
    owners.map(async ({ auth, instanceId }) => {
      const body = JSON.stringify({ model_api_keys: { openai: 'bench' } })
      await fetch(`${apiUrl}/v1/organization`, { method: 'PATCH', headers: { ...json, ...auth }, body })
      const token = randomBytes(32).toString('hex')
      await pool.query("UPDATE instances SET model_provider = 'openai', relay_token_hash = $2 WHERE id = $1", [
        instanceId,
        hashRelayToken(token),
      ])
      return token
    }),
  )
}

/** Gives the organizations of owners a hard budget that no call comes near to. */
async function setBudgets(apiUrl: string, owners: Owner[]): Promise<void> {
  const body = JSON.stringify({ budgets: [{ name: 'monthly', limit: { tokens: 1e15 }, per: 'month' }] })
  for (const { auth } of owners) {
    const answer = await fetch(`${apiUrl}/v1/organization`, { method: 'PATCH', headers: { ...json, ...auth }, body })
    if (!answer.ok) throw new Error(`a budget could not be set: ${await answer.text()}`)
  }
}

/** What a relay, in a process of its own, adds to a call, what a budget adds to that, and what 500 open streams take. */
export async function measureRelay(setup: RelaySetup): Promise<Figure[]> {
  const { chowder, vendorPort, load, rounds, roundMs, apiUrl, owners } = setup
  const withBudget = Math.ceil(owners.length / 2)
  const tokens = await makeTokens(setup)
  const port = await freePort()
  const env = {
    ...chowder.env,
    RELAY_ROLE: 'relay',
    RELAY_PORT: String(port),
    OPENAI_BASE_URL: `http://127.0.0.1:${vendorPort}`,
  }
  const relay = await startChowder({ ...chowder, env, role: 'relay' })
  try {
    const headers = (token: string) => ({ ...json, authorization: `Bearer ${token}` })
    const body = JSON.stringify({ model: 'gpt-5', input: 'Hello, who are you?' })
    const call = (path: string): Request[] =>
      tokens.map((token) => ({ method: 'POST', path, headers: headers(token), body }))
    const relayed = call('/relay/openai/v1/responses')
    const direct = call('/v1/responses')
    const added: Round[] = []
    await load([port], relayed, 200, roundMs, 1)
    for (let round = 0; round < rounds; round += 1) {
      const without = await load([vendorPort], direct, 200, roundMs, 1)
      const through = await load([port], relayed, 200, roundMs, 1)
      added.push({ chowder: Math.max(0.001, through.p50Ms - without.p50Ms), limit: mostAddedMs })
    }
    await setBudgets(apiUrl, owners.slice(0, withBudget))
    const checked: Round[] = []
    await load([port], relayed, 200, roundMs, 1)
    for (let round = 0; round < rounds; round += 1) {
      const without = await load([port], relayed.slice(withBudget), 200, roundMs, 1)
      const checks = await load([port], relayed.slice(0, withBudget), 200, roundMs, 1)
      checked.push({ chowder: Math.max(0.001, checks.p50Ms - without.p50Ms), limit: mostBudgetMs })
    }
    const memory = await openStreamsMb(relay.pid, streams, (at) => ({
      url: `http://127.0.0.1:${port}/relay/openai/v1/responses`,
      headers: headers(present(tokens[at % tokens.length])),
    }))
    return [
      figure('relay added p50', 'ms', { atMost: 1 }, added),
      figure('budget check p50', 'ms', { atMost: 1 }, checked),
      figure('relay, 500 streams', 'MB', { atMost: 1 }, [{ chowder: memory, limit: mostStreamsMb }]),
    ]
  } finally {
    await relay.stop('SIGTERM')
  }
}
