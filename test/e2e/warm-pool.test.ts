import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import pg from 'pg'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { reachEmbeddedPostgres } from '#database/embedded.ts'
import { startAgent, type TestAgent } from '../support/agent.ts'
import { waitForStatus } from '../support/api-client.ts'
import { present } from '../support/present.ts'
import { until } from '../support/until.ts'

let agent: TestAgent
beforeAll(async () => {
  agent = await startAgent({ env: { WARM_POOL: '1' }, fields: { instructions: 'Be kind.' } })
})
afterAll(() => agent?.close())

const sandboxes = () => readdir(join(agent.dataDir, 'sandboxes'))
const warmed = () =>
  until(
    'a warm agent to be ready',
    () => agent.chowder.output().match(/"desiredState":"running","msg":"settled"/g)?.length === 2,
    120_000,
  )

/** The files of an agent's home, without those whose names are random or times. */
async function filesOf(id: string): Promise<string[]> {
  const home = join(agent.dataDir, 'sandboxes', id, 'home')
  const names = await readdir(home, { recursive: true })
  const lasting = names.filter((name) => !/[0-9a-f]{8}|\d{4}-\d\d|-(wal|shm)$|\.lock$/.test(name))
  return lasting.map((name) => name.replace(/-\d+(?=\/|$)/, '-<uid>')).sort()
}

it('a create takes a warm agent of the real OpenClaw, which then has nothing of the pool', async () => {
  await warmed()
  const before = await sandboxes()
  expect(before).toHaveLength(2)
  const asked = agent.provider.requests.length

  const startedAt = performance.now()
  const { body } = await agent.client.post('/v1/instances', { name: 'Ada', instructions: 'Be brief.' })
  expect(before).toContain(body.id)
  expect(body.id).not.toBe(agent.id)
  await waitForStatus(agent.client, body.id, 'running', 60_000)
  const { body: answer } = await agent.client.post(`/v1/instances/${body.id}/responses`, {
    model: 'openclaw',
    input: 'hello from its customer',
  })
  // A cold start takes more than five seconds, and a first turn three.
  console.log(`warm agent: ${Math.round(performance.now() - startedAt)} ms from the create to the end of a turn`)
  expect(answer.status).toBe('completed')

  // The first turn of the pool reached no provider, and no later one contains it.
  const requests = agent.provider.requests.slice(asked)
  expect(requests).toHaveLength(1)
  expect(JSON.stringify(requests[0]?.body)).toContain('Ada')
  expect(requests[0]?.system).toContain('Be brief.')
  expect(JSON.stringify(requests[0]?.body)).not.toContain('Warm up.')

  const { body: events } = await agent.client.get(`/v1/instances/${body.id}/events?order=asc`)
  expect(events.map(({ type }: { type: string }) => type)).toEqual(['instance.create', 'instance.running'])
  const { body: usage } = await agent.client.get(`/v1/instances/${body.id}/usage`)
  expect(JSON.stringify(usage)).toContain('"calls":1')
  const { body: sessions } = await agent.client.get(`/v1/instances/${body.id}/sessions`)
  expect(sessions).toHaveLength(1)

  // The folder of an agent that was started for its customer, after one turn too.
  await agent.client.post(`/v1/instances/${agent.id}/responses`, { model: 'openclaw', input: 'hello' })
  expect(await filesOf(body.id)).toEqual(await filesOf(agent.id))
  const record = await readFile(join(agent.dataDir, 'sandboxes', body.id, 'sandbox.json'), 'utf8')
  expect(record).not.toContain('Ada')

  // The session of its first turn is deleted a minute after the hand-over.
  const database = new pg.Client(present(await reachEmbeddedPostgres(agent.dataDir)))
  await database.connect()
  try {
    const isLeft = async (change = '') =>
      (await database.query(`${change || 'SELECT FROM passing_sessions'} WHERE instance_id = $1`, [body.id]))
        .rowCount !== 0
    expect(await isLeft('UPDATE passing_sessions SET due_at = now()')).toBe(true)
    await until('the session of its first turn to be deleted', async () => !(await isLeft()), 30_000)
  } finally {
    await database.end()
  }
}, 180_000)
