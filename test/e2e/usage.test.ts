import { afterAll, beforeAll, expect, it } from 'vitest'
import { startAgent, type TestAgent } from '../support/agent.ts'
import { say, sessionPath } from '../support/api-client.ts'
import { until } from '../support/until.ts'

let agent: TestAgent

beforeAll(async () => {
  agent = await startAgent({ fields: { metadata: { customer: 'c1' } } })
})
afterAll(() => agent?.close())

const usage = async (query: string) => (await agent.client.get(`/v1/organization/usage?${query}`)).body

it('every call of an agent is in its usage, by session, model, label and cause', { tags: ['long'] }, async () => {
  const { client, id, provider } = agent
  await say(client, sessionPath(id, 'user-1'), 'hello')
  await say(client, sessionPath(id, 'user-1'), `[[fake:tool=exec {"command":"true"}]]`)
  await say(client, sessionPath(id), 'hello')
  await until('all calls', async () => (await usage(''))[0]?.calls === provider.requests.length)
  const [all] = await usage('')
  expect(all.calls).toBe(4)
  expect(all.input_tokens).toBeGreaterThan(4)
  expect(all.estimated_cost).toBeGreaterThan(0)
  expect([all.cut_calls, all.lost_calls, all.calls_without_tokens, all.calls_without_price]).toEqual([0, 0, 0, 0])
  expect(await usage('group_by=session&group_by=cause&group_by=metadata.customer&group_by=model')).toMatchObject([
    { session_id: 'main', cause: null, calls: 1, metadata: { customer: 'c1' }, model: 'claude-sonnet-4-6' },
    { session_id: 'user-1', cause: 'api', calls: 3, metadata: { customer: 'c1' }, model: 'claude-sonnet-4-6' },
  ])
  expect((await client.get(`/v1/instances/${id}/usage?bucket=hour`)).body[0]).toMatchObject({ calls: 4 })
})
