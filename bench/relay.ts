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

/** What a relay, in a process of its own, adds to a call of a vendor, and what 500 open streams take there. */
export async function measureRelay(setup: RelaySetup): Promise<Figure[]> {
  const { chowder, vendorPort, load, rounds, roundMs } = setup
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
    const memory = await openStreamsMb(relay.pid, streams, (at) => ({
      url: `http://127.0.0.1:${port}/relay/openai/v1/responses`,
      headers: headers(present(tokens[at % tokens.length])),
    }))
    return [
      figure('relay added p50', 'ms', { atMost: 1 }, added),
      figure('relay, 500 streams', 'MB', { atMost: 1 }, [{ chowder: memory, limit: mostStreamsMb }]),
    ]
  } finally {
    await relay.stop('SIGTERM')
  }
}
