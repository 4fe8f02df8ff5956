import OpenAI from 'openai'
import pg from 'pg'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { reachEmbeddedPostgres } from '#database/embedded.ts'
import { connectGateway } from '#openclaw/gateway/gateway.ts'
import { startAgent, type TestAgent } from '../support/agent.ts'
import { findGateway } from '../support/chowder-process.ts'
import { present } from '../support/present.ts'
import { until } from '../support/until.ts'

let agent: TestAgent
beforeAll(async () => {
  agent = await startAgent({ fields: { idle_timeout_seconds: 60 } })
})
afterAll(() => agent?.close())

const read = async () => (await agent.client.get(`/v1/instances/${agent.id}`)).body
const untilAsleep = () => until('the agent to sleep', async () => (await read()).step === 'asleep', 180_000)

it('a real agent sleeps when it is idle, and a turn wakes it with its memory', async () => {
  const openai = new OpenAI({
    baseURL: `${agent.chowder.url}/v1/instances/${agent.id}`,
    apiKey: agent.key,
    maxRetries: 0,
  })
  const say = (input: string) => openai.responses.create({ model: 'openclaw', input })
  await say('my number is seven')
  await untilAsleep()
  expect(await read()).toMatchObject({ status: 'stopped', stopped_for: 'idle', wakes_at: null })
  expect(await findGateway(agent.id)).toBeNull()

  const [one, other] = await Promise.all([say('which number is it?'), say('and now?')])
  expect([one.status, other.status]).toEqual(['completed', 'completed'])
  const asked = present(agent.provider.requests.find(({ last }) => last.includes('which number is it?')))
  expect(JSON.stringify(asked.body)).toContain('my number is seven')
  const { body: events } = await agent.client.get(`/v1/instances/${agent.id}/events?type=instance.start`)
  expect(events).toMatchObject([{ reason: 'woken by a request.' }])
})

it('a real agent sleeps until its own cron needs it, and is started for it', async () => {
  const { endpoint, token } = present(await findGateway(agent.id))
  const gateway = await connectGateway(endpoint, token, { signal: AbortSignal.timeout(30_000), timeoutMs: 30_000 })
  const at = Date.now() + 30 * 60_000
  await gateway.call('cron.add', {
    name: 'tick',
    schedule: { kind: 'at', at: new Date(at).toISOString() },
    sessionTarget: 'isolated',
    wakeMode: 'now',
    payload: { kind: 'agentTurn', message: 'tick' },
    delivery: { mode: 'none' },
  })
  gateway.close()
  await untilAsleep()
  expect(Date.parse((await read()).wakes_at)).toBe(at - 90_000)

  const database = new pg.Client(present(await reachEmbeddedPostgres(agent.dataDir)))
  await database.connect()
  await database.query('UPDATE instances SET wakes_at = now() WHERE id = $1', [agent.id]).finally(() => database.end())
  await until('the agent to run', async () => (await read()).status === 'running', 120_000)
  expect(await read()).toMatchObject({ stopped_for: null, wakes_at: null })
})
