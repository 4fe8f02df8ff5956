import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { connectGateway } from '#openclaw/gateway.ts'
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
  const { port, token } = present(await findGateway(agent.id))
  const signal = AbortSignal.timeout(30_000)
  const gateway = await connectGateway({ kind: 'tcp', host: '127.0.0.1', port }, token, { signal, timeoutMs: 30_000 })
  try {
    return await gateway.call(method, params, { timeoutMs: 30_000 })
  } finally {
    gateway.close()
  }
}

it('a budget stops a chatty agent and its cron, says so, and is lifted', { tags: ['long'] }, async () => {
  const { client, id, provider } = agent
  const isOfCron = ({ last }: { last: string }) => last.includes('tick of the clock')
  await callGateway('cron.add', {
    name: 'chatty',
    schedule: { kind: 'every', everyMs: 3000 },
    sessionTarget: 'isolated',
    wakeMode: 'now',
    payload: { kind: 'agentTurn', message: 'tick of the clock' },
    delivery: { mode: 'none' },
  })
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
  await until('the cron to run again', () => provider.requests.slice(asked).some(isOfCron), 120_000)
  const [budget] = (await client.get(`/v1/instances/${id}`)).body.budgets
  expect(budget).toMatchObject({ name: 'daily', state: 'ok' })
  expect(budget.used).toBeGreaterThan(1000)
})
