import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest'
import { pauseStorms } from '#instances/storm-guard.ts'
import { FakeDriver } from '../support/fake-driver.ts'
import { type FakeGateway, startFakeGateway } from '../support/fake-gateway.ts'
import { openTestChowder, type TestChowder } from '../support/test-chowder.ts'
import { until } from '../support/until.ts'

let gateway: FakeGateway
let chowder: TestChowder
let organizationId: string
let key: string
let id: string
/** What workers do every 20 s. */
const look = () => pauseStorms({ db: chowder.deps.db, queue: chowder.queue })

beforeAll(async () => {
  gateway = await startFakeGateway({})
  chowder = await openTestChowder({ sandboxes: new FakeDriver(() => gateway.endpoint) })
  await chowder.startWorker()
  ;({ id: organizationId, key } = await chowder.signUp())
  id = (await call('POST', '/v1/instances', { name: 'x' })).body.id
  await until('the instance to run', async () => (await call('GET', `${path()}/status`)).body.status === 'running')
})
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})
beforeEach(() => query('TRUNCATE model_calls, instance_turns'))

const call = (method: 'GET' | 'PATCH' | 'POST', url: string, body?: object) =>
  chowder.call(method, url, { key, ...(body && { body }) })
const path = () => `/v1/instances/${id}`
const query = async (text: string, values: unknown[] = []) => (await chowder.database.pool.query(text, values)).rows
const isPaused = async () => (await call('GET', path())).body.automation_paused as boolean
const configured = () => JSON.stringify((gateway.config as Record<string, unknown>).cron ?? null)
const off = '{"enabled":false}'

/** Calls of models, as a relay writes them. */
const add = (count: number, cause: string | null, ago = '1 minute') =>
  query(
    `INSERT INTO model_calls (id, organization_id, instance_id, provider, began_at, outcome, cause)
     SELECT gen_random_uuid(), $1, $2, 'anthropic', now() - $3::interval, 'answered', $4 FROM generate_series(1, $5)`,
    [organizationId, id, ago, cause, count],
  )

test('an agent that calls models on and on has its heartbeat and cron paused, says so, and is resumed by a PATCH', async () => {
  await add(150, 'cron')
  await add(100, 'api')
  await look()
  expect(await isPaused()).toBe(false)
  await add(51, 'cron')
  await until('the pause', isPaused)
  await until('the gateway to have it', () => configured() === off)
  const { body: events } = await call('GET', `${path()}/events?type=instance.automation_paused`)
  expect(events).toMatchObject([
    {
      actor: { type: 'worker' },
      reason: '201 calls of models in an hour that nobody asked for. PATCH with automation_paused: false resumes.',
    },
  ])
  expect((await call('GET', path())).body.status).toBe('running')
  expect((await call('PATCH', path(), { automation_paused: false })).body.automation_paused).toBe(false)
  expect(configured()).not.toBe(off)
  await look()
  expect(await isPaused()).toBe(false) // those calls count no more
})

test('calls of the session main count unless somebody has talked to the agent', async () => {
  await call('PATCH', path(), { unattended_calls_per_hour: 5 })
  await add(10, null, '-1 second')
  await query('INSERT INTO instance_turns (instance_id) VALUES ($1)', [id])
  await look()
  expect(await isPaused()).toBe(false)
  await query('TRUNCATE instance_turns')
  await add(1, 'channel', '-1 second')
  await look()
  expect(await isPaused()).toBe(false)
  await query("DELETE FROM model_calls WHERE cause = 'channel'")
  await until('the pause', isPaused)
  await call('PATCH', path(), { automation_paused: false })
})

test('a turn of the API is noted', async () => {
  const turn = await call('POST', `${path()}/responses`, { model: 'openclaw', input: 'hello' })
  expect(turn.status).toBe(200)
  expect(await query('SELECT instance_id FROM instance_turns')).toEqual([{ instance_id: id }])
})

test('the number is that of the instance, else of the organization, and 0 is any number', async () => {
  await call('PATCH', '/v1/organization', { unattended_calls_per_hour: 3 })
  expect((await call('GET', '/v1/organization')).body.unattended_calls_per_hour).toBe(3)
  await call('PATCH', path(), { unattended_calls_per_hour: 0 })
  await add(10, 'cron', '-1 second')
  await look()
  expect(await isPaused()).toBe(false)
  await call('PATCH', path(), { unattended_calls_per_hour: null })
  await until('the pause', isPaused)
})

test('a scoped key resumes its agent, and does not change the number', async () => {
  const { raw_key: scoped } = (
    await call('POST', '/v1/keys', { name: 'k', instance_ids: [id], permissions: ['configure'] })
  ).body
  const patch = (body: object) => chowder.call('PATCH', path(), { key: scoped, body })
  const { status, body } = await patch({ unattended_calls_per_hour: 0 })
  expect([status, body.error.code, body.error.param]).toEqual([
    403,
    'needs_organization_key',
    'unattended_calls_per_hour',
  ])
  expect((await patch({ automation_paused: false })).body.automation_paused).toBe(false)
})

test('people pause automation themselves, whatever their overrides say', async () => {
  const openclaw_config = { 'cron.enabled': true, 'agents.defaults.heartbeat.every': '5m' }
  await call('PATCH', path(), { automation_paused: false, openclaw_config })
  expect(configured()).toBe('{"enabled":true}')
  expect((await call('PATCH', path(), { automation_paused: true })).body.automation_paused).toBe(true)
  expect(configured()).toBe(off)
  expect((await call('PATCH', path(), { automation_paused: false })).body.automation_paused).toBe(false)
  expect(configured()).toBe('{"enabled":true}')
})
