import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { connectGateway } from '#openclaw/gateway/gateway.ts'
import { startAgent, type TestAgent } from '../support/agent.ts'
import { say, sessionPath } from '../support/api-client.ts'
import { findGateway } from '../support/chowder-process.ts'
import { present } from '../support/present.ts'
import { until } from '../support/until.ts'

let agent: TestAgent

beforeAll(async () => {
  agent = await startAgent()
})
afterAll(() => agent?.close())

const budgets = (tokens: number) => ({ budgets: [{ name: 'daily', limit: { tokens }, per: 'day' }] })

async function callGateway(method: string, params: Record<string, unknown>): Promise<unknown> {
  const { endpoint, token } = present(await findGateway(agent.id))
  const signal = AbortSignal.timeout(30_000)
  const gateway = await connectGateway(endpoint, token, { signal, timeoutMs: 30_000 })
  try {
    return await gateway.call(method, params, { timeoutMs: 30_000 })
  } finally {
    gateway.close()
  }
}

const addJob = (name: string, everyMs: number) =>
  callGateway('cron.add', {
    name,
    schedule: { kind: 'every', everyMs },
    sessionTarget: 'isolated',
    wakeMode: 'now',
    payload: { kind: 'agentTurn', message: `tick of ${name}` },
    delivery: { mode: 'none' },
  })
const isOf =
  (name: string) =>
  ({ last }: { last: string }) =>
    last.includes(`tick of ${name}`)

/** OpenClaw runs a job that has failed three times in a row five minutes later. */
const againMs = 330_000
const long = { tags: ['long'], timeout: 12 * 60_000 }

it('a budget of an end user stops a turn at work, by the session that its calls name', { tags: ['long'] }, async () => {
  const { client, id, provider } = agent
  const budget = { name: 'daily', scope: 'end_user', limit: { tokens: 1 }, per: 'day' }
  expect((await client.patch(`/v1/instances/${id}`, { budgets: [budget] })).status).toBe(200)
  await sleep(500)
  const asked = provider.requests.length
  const { status, body: refusal } = await client.post(sessionPath(id, 'of-ann'), {
    model: 'openclaw',
    user: 'ann',
    input: 'work [[fake:tool=exec {"command":"sleep 1"}]]',
  })
  expect([status, refusal.error?.code]).toEqual([402, 'budget_exceeded'])
  expect(refusal.error.message).toMatch(/^The budget “daily” of this end user is used up until/)
  expect(provider.requests.length - asked, 'calls of models').toBe(1)
  expect(await say(client, sessionPath(id, 'of-nobody'), 'and you')).toContain('last="and you"')
  expect((await client.patch(`/v1/instances/${id}`, { budgets: [] })).status).toBe(200)
})

it(
  'cron that no person has asked for is refused by the budget of unattended calls, until it is raised',
  long,
  async () => {
    const { client, id, provider } = agent
    const path = `/v1/instances/${id}`
    const limit = (calls: number) => ({
      budgets: [{ name: 'night', scope: 'unattended', limit: { calls }, per: 'day' }],
    })
    await client.patch(path, limit(3))
    await addJob('a storm', 2000)
    const isUsedUp = async () => (await client.get(path)).body.budgets[0].state === 'used_up'
    await until('the budget to be used up', isUsedUp, 180_000)
    await sleep(1000)
    const asked = provider.requests.length
    await sleep(8000)
    expect(provider.requests).toHaveLength(asked)
    expect(await say(client, sessionPath(id), 'still there')).toContain('last="still there"')
    await client.patch(path, limit(1_000_000))
    await until('cron to run again', () => provider.requests.slice(asked).some(isOf('a storm')), againMs)
    const { jobs } = (await callGateway('cron.list', {})) as { jobs: { id: string; name: string }[] }
    await callGateway('cron.remove', { id: present(jobs.find(({ name }) => name === 'a storm')).id })
    await client.patch(path, { budgets: [] })
  },
)

it('a budget stops a chatty agent and its cron, says so, and is lifted', long, async () => {
  const { client, id, provider } = agent
  const isOfCron = isOf('a clock')
  await addJob('a clock', 3000)
  expect(await say(client, sessionPath(id), 'hello')).toContain('last="hello"')
  await until('the cron to run', () => provider.requests.some(isOfCron), 120_000)

  expect((await client.patch(`/v1/instances/${id}`, budgets(1000))).status).toBe(200)
  await until(
    'the budget to be used up',
    async () => {
      const { status, body } = await client.post(sessionPath(id), { model: 'openclaw', input: 'hello again' })
      return status === 402 && body
    },
    120_000,
  )
  const refusal = await client.post(sessionPath(id), { model: 'openclaw', input: 'hello again' })
  expect([refusal.status, refusal.body.error.code]).toEqual([402, 'budget_exceeded'])
  expect(refusal.body.error.message).toMatch(
    /^The budget “daily” of this agent is used up until .* 00:00 \(UTC\), when it resets\./,
  )

  await sleep(1000)
  const asked = provider.requests.length
  const saysSo = async () => JSON.stringify(await callGateway('cron.list', {})).includes('is used up until')
  await until('the job to say so', saysSo, 120_000)
  expect(provider.requests).toHaveLength(asked)

  expect((await client.patch(`/v1/instances/${id}`, budgets(10_000_000))).status).toBe(200)
  expect(await say(client, sessionPath(id), 'lifted')).toContain('last="lifted"')
  await until('the cron to run again', () => provider.requests.slice(asked).some(isOfCron), againMs)
  const [budget] = (await client.get(`/v1/instances/${id}`)).body.budgets
  expect(budget).toMatchObject({ name: 'daily', state: 'ok' })
  expect(budget.used).toBeGreaterThan(1000)
})
