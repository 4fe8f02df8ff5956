import type pg from 'pg'
import { hashRelayToken, newRelayToken } from '#instances/gateway/tokens.ts'
import { freePort } from '#platform/free-port.ts'
import { type ChowderOptions, startChowder } from '../demo/chowder-process.ts'
import { present } from '../test/support/present.ts'
import { type Figure, figure, type Round } from './figures.ts'
import type { Measured } from './load.ts'
import { json, type Owner, type Request, type Setup } from './setup.ts'
import { openStreamsMb } from './streams.ts'
import { measureUsageWrites } from './usage-writes.ts'

const streams = 500
/** The limits of its cost: for a call that is made alone, and for the memory of 500 open streams. */
const mostAddedMs = 1
const mostAddedP99Ms = 5
const mostStreamsMb = 100
/** Of the check of a budget of which most is left. */
const mostBudgetMs = 0.2

interface RelaySetup extends Pick<Setup, 'load' | 'start'> {
  pool: pg.Pool
  chowder: Omit<ChowderOptions, 'role'>
  apiUrl: string
  /** The stub that stands for OpenAI. */
  vendorPort: number
  owners: Owner[]
  rounds: number
  roundMs: number
}

/** Gives the owner's instance a token, and its organization a key for the stub. */
export async function makeToken(pool: pg.Pool, apiUrl: string, { auth, instanceId }: Owner): Promise<string> {
  const body = JSON.stringify({ model_api_keys: { openai: 'bench' } })
  await fetch(`${apiUrl}/v1/organization`, { method: 'PATCH', headers: { ...json, ...auth }, body })
  const token = newRelayToken()
  await pool.query("UPDATE instances SET model_provider = 'openai', relay_token_hash = $2 WHERE id = $1", [
    instanceId,
    hashRelayToken(token),
  ])
  return token
}

/** Gives the organizations of owners a hard budget that no call comes near to. */
async function setBudgets(apiUrl: string, owners: Owner[]): Promise<void> {
  const body = JSON.stringify({ budgets: [{ name: 'monthly', limit: { tokens: 1e15 }, per: 'month' }] })
  for (const { auth } of owners) {
    const answer = await fetch(`${apiUrl}/v1/organization`, { method: 'PATCH', headers: { ...json, ...auth }, body })
    if (!answer.ok) throw new Error(`a budget could not be set: ${await answer.text()}`)
  }
}

/** Starts a relay as a process of its own, before the stub that stands for OpenAI. */
export async function startRelay(chowder: RelaySetup['chowder'], vendorPort: number) {
  const port = await freePort()
  const env = {
    ...chowder.env,
    RELAY_ROLE: 'relay',
    RELAY_PORT: String(port),
    OPENAI_BASE_URL: `http://127.0.0.1:${vendorPort}`,
  }
  return { port, ...(await startChowder({ ...chowder, env, role: 'relay' })) }
}

/** The path of a call at the relay. */
export const relayedPath = '/relay/openai/v1/responses'

/** A call of the agent that has this token. */
export const callWith = (token: string, path = relayedPath) => ({
  method: 'POST' as const,
  path,
  headers: { ...json, authorization: `Bearer ${token}` },
  body: JSON.stringify({ model: 'gpt-5', input: 'Hello, who are you?' }),
})

/**
 * What a relay, in a process of its own, adds to a call of a vendor, and a budget to that; the calls a second beside a
 * bare proxy's; what 500 open streams take there; and the calls that are written a second.
 */
export async function measureRelay(setup: RelaySetup): Promise<Figure[]> {
  const { pool, apiUrl, owners, chowder, vendorPort, load, start, rounds, roundMs } = setup
  const tokens = await Promise.all(owners.map((owner) => makeToken(pool, apiUrl, owner)))
  const withBudget = Math.ceil(owners.length / 2)
  const { port, ...relay } = await startRelay(chowder, vendorPort)
  try {
    const relayed: Request[] = tokens.map((token) => callWith(token))
    const direct: Request[] = tokens.map((token) => callWith(token, '/v1/responses'))
    const barePort = await start('./bare-relay.ts', { vendorPort })
    const alone: { without: Measured; through: Measured }[] = []
    const calls: Round[] = []
    for (const at of [port, barePort]) await load([at], at === port ? relayed : direct, 200, roundMs)
    while (alone.length < rounds) {
      const without = await load([vendorPort], direct, 200, roundMs, 1)
      alone.push({ without, through: await load([port], relayed, 200, roundMs, 1) })
      const bare = await load([barePort], direct, 200, roundMs)
      calls.push({ chowder: (await load([port], relayed, 200, roundMs)).perSecond, limit: bare.perSecond })
    }
    await setBudgets(apiUrl, owners.slice(0, withBudget))
    const checked: Round[] = []
    await load([port], relayed, 200, roundMs, 1)
    for (let round = 0; round < rounds; round += 1) {
      const without = await load([port], relayed.slice(withBudget), 200, roundMs, 1)
      const checks = await load([port], relayed.slice(0, withBudget), 200, roundMs, 1)
      checked.push({ chowder: Math.max(0.001, checks.p50Ms - without.p50Ms), limit: mostBudgetMs })
    }
    const added = (of: 'p50Ms' | 'p99Ms', limit: number): Round[] =>
      alone.map(({ without, through }) => ({ chowder: Math.max(0.001, through[of] - without[of]), limit }))
    const memory = await openStreamsMb(relay.pid, streams, (at) => ({
      url: `http://127.0.0.1:${port}${relayedPath}`,
      headers: callWith(present(tokens[at % tokens.length])).headers,
    }))
    return [
      figure('relay added p50', 'ms', { atMost: 1 }, added('p50Ms', mostAddedMs)),
      figure('relay added p99', 'ms', { atMost: 1 }, added('p99Ms', mostAddedP99Ms)),
      figure('budget check p50', 'ms', { atMost: 1 }, checked),
      figure('relayed calls', '/s', { atLeast: 0.25 }, calls),
      figure('relay, 500 streams', 'MB', { atMost: 1 }, [{ chowder: memory, limit: mostStreamsMb }]),
      figure('usage written', '/s', { atLeast: 0.2 }, await measureUsageWrites(pool, owners, rounds)),
    ]
  } finally {
    await relay.stop('SIGTERM')
  }
}
