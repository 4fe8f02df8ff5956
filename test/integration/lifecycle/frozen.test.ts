import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeEach, expect, test } from 'vitest'
import { stopForDrain } from '#instances/drain-region.ts'
import { allShards } from '#lifecycle/queue/shards.ts'
import { createUseWatch } from '#lifecycle/watch/use-watch.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { startFakeGateway } from '../../support/fake-gateway.ts'
import { present } from '../../support/present.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const within = () => AbortSignal.timeout(20_000)
const gateway = await startFakeGateway({})
const driver = new FakeDriver(() => gateway.endpoint)
const chowder = await openTestChowder({ sandboxes: driver })
await chowder.startWorker()
const { key } = await chowder.signUp()
const watch = createUseWatch(chowder.deps, () => allShards)
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})

/** Suspensions that hold, by the id of their request, as a gateway keeps them. */
const held = new Map<string, string>()
/** The work that the gateway reports after it was found idle. */
let lateWork: object[] = []
let prepared = 0
beforeEach(() => {
  driver.heal()
  driver.freezes = true
  driver.calls.length = 0
  lateWork = []
  prepared = 0
  held.clear()
  gateway.methods = {
    'channels.status': () => ({ channelAccounts: {} }),
    'cron.list': () => ({ jobs: [] }),
    'gateway.suspend.prepare': ({ requestId }) => {
      prepared += 1
      if (prepared === 2 && lateWork.length > 0) return { status: 'busy', activeCount: 1, blockers: lateWork }
      const suspensionId = held.get(String(requestId)) ?? `suspension-${prepared}`
      held.set(String(requestId), suspensionId)
      return { status: 'ready', suspensionId, activeCount: 0, blockers: [] }
    },
    'gateway.suspend.resume': ({ suspensionId }) => {
      for (const [requestId, id] of held) if (id === suspensionId) held.delete(requestId)
      return { ok: true, resumed: true }
    },
  }
})

const call = (method: 'GET' | 'PATCH' | 'POST' | 'DELETE', url: string, body?: object) =>
  chowder.call(method, url, { key, ...(body && { body }) })
const read = async (id: string) => (await call('GET', `/v1/instances/${id}`)).body
const query = async (text: string, values: unknown[] = []) => (await chowder.database.pool.query(text, values)).rows
const sandbox = (id: string) => present(driver.sandboxes.get(id))
const did = (method: FakeDriver['calls'][number]['method'], id: string) =>
  driver.calls.filter((call) => call.method === method && call.id === id).length
const untilSettled = (id: string, status: string) =>
  until(`the instance to be ${status}`, async () => {
    const { status: latest, limits, step } = await read(id)
    return latest === status && limits !== null && step === (status === 'stopped' ? 'asleep' : null)
  })
const ask = (id: string) => call('POST', `/v1/instances/${id}/responses`, { model: 'openclaw', input: 'hi' })
const reasons = async (id: string, type: string) =>
  ((await call('GET', `/v1/instances/${id}/events?type=${type}`)).body as { reason: string }[]).map(
    ({ reason }) => reason,
  )
/** An agent that sleeps. */
async function asleep(): Promise<string> {
  const { body } = await call('POST', '/v1/instances', { name: 'x', idle_timeout_seconds: 600 })
  await untilSettled(body.id, 'running')
  await query(`UPDATE instances SET ready_at = now() - interval '1 hour' WHERE id = $1`, [body.id])
  await watch.watch(within())
  await untilSettled(body.id, 'stopped')
  return body.id
}

test('a sleeping agent is frozen, and stays so while its sandbox is compared', async () => {
  const id = await asleep()
  expect(await read(id)).toMatchObject({ status: 'stopped', step: 'asleep', stopped_for: 'idle', wakes_at: null })
  expect(sandbox(id)).toMatchObject({ running: true, frozen: true })
  expect([...held.keys()]).toEqual([id])
  await sleep(2500) // two comparisons
  expect(sandbox(id)).toMatchObject({ running: true, frozen: true })
  expect(did('stop', id)).toBe(0)
  expect(await reasons(id, 'instance.due')).toEqual([])
})

test.for<[string, (id: string) => ReturnType<typeof call>]>([
  ['a request', ask],
  ['a start', (id) => call('POST', `/v1/instances/${id}/start`)],
])('%s thaws the agent: the same gateway, with its tokens, takes requests', async ([, wake]) => {
  const id = await asleep()
  const [before] = await query('SELECT relay_token_hash, sealed_token FROM instances WHERE id = $1', [id])
  expect((await wake(id)).status).toBe(200)
  await untilSettled(id, 'running')
  expect(sandbox(id)).toMatchObject({ running: true, frozen: false })
  expect([driver.starts.get(id), did('stop', id)]).toEqual([1, 0])
  expect(await query('SELECT relay_token_hash, sealed_token FROM instances WHERE id = $1', [id])).toEqual([before])
  expect([...held]).toEqual([])
  expect(await read(id)).toMatchObject({ status: 'running', stopped_for: null })
})

test.for<[string, () => void]>([
  [
    'its host has no swap',
    () => {
      driver.freezes = false
    },
  ],
  ['the freeze fails', () => driver.fail({ method: 'freeze' })],
  [
    'its gateway works again',
    () => {
      lateWork = [{ kind: 'task', count: 1 }]
    },
  ],
])('an agent is stopped when %s', async ([, change]) => {
  change()
  const id = await asleep()
  expect(sandbox(id).running).toBe(false)
  expect([...held]).toEqual([])
  expect(await query('SELECT relay_token_hash FROM instances WHERE id = $1', [id])).toEqual([
    { relay_token_hash: null },
  ])
  expect((await ask(id)).status).toBe(200)
  expect(driver.starts.get(id)).toBe(2)
})

test('a frozen agent is deleted', async () => {
  const id = await asleep()
  expect((await call('DELETE', `/v1/instances/${id}`)).status).toBeLessThan(300)
  await until('its end', () => !driver.sandboxes.has(id))
})

test('a stop ends the gateway of a frozen agent', async () => {
  const id = await asleep()
  expect((await call('POST', `/v1/instances/${id}/stop`)).body).toMatchObject({ status: 'stopped', step: null })
  await until('its end', () => !sandbox(id).running)
  expect((await ask(id)).status).toBe(409)
})

test.for<[string, object]>([
  ['instructions', { instructions: 'Be brief.' }],
  ['name', { name: 'other' }],
  ['isolation', { isolation: 'two_rooms' }],
])('an agent whose %s changed while it was frozen is started anew', async ([, patch]) => {
  const id = await asleep()
  expect((await call('PATCH', `/v1/instances/${id}`, patch)).status).toBe(200)
  await until('the end of its gateway', () => !sandbox(id).running)
  expect(await read(id)).toMatchObject({ step: 'asleep', stopped_for: 'idle' })
  expect((await ask(id)).status).toBe(200)
  expect(driver.starts.get(id)).toBe(2)
})

test('a changed agent that is woken at once has no gateway with its former configuration', async () => {
  const id = await asleep()
  await call('PATCH', `/v1/instances/${id}`, { instructions: 'Be brief.' })
  expect((await ask(id)).status).toBe(200)
  expect(driver.starts.get(id)).toBe(2)
})

test('a change that concerns its sleep alone leaves an agent frozen', async () => {
  const id = await asleep()
  await call('PATCH', `/v1/instances/${id}`, { idle_timeout_seconds: 900 })
  await sleep(1500)
  expect(sandbox(id).frozen).toBe(true)
})

test('an agent that is frozen for a day is stopped, sleeps on, and is started by a request', async () => {
  const id = await asleep()
  await query(`UPDATE instances SET updated_at = now() - interval '25 hours' WHERE id = $1`, [id])
  await until('the end of its gateway', () => !sandbox(id).running)
  await untilSettled(id, 'stopped')
  expect(await read(id)).toMatchObject({ step: 'asleep', stopped_for: 'idle' })
  expect((await ask(id)).status).toBe(200)
  expect(driver.starts.get(id)).toBe(2)
})

test('a drain of its region ends the gateway of a frozen agent, which sleeps on', async () => {
  const id = await asleep()
  await stopForDrain(chowder.deps.db, chowder.deps)
  await until('the end of its gateway', () => !sandbox(id).running)
  await untilSettled(id, 'stopped')
})

test('an agent whose gateway ended while it was frozen is started', async () => {
  const id = await asleep()
  driver.die(id, 137)
  expect((await ask(id)).status).toBe(200)
  expect(driver.starts.get(id)).toBe(2)
})

test('an agent that something else has thawed is stopped', async () => {
  const id = await asleep()
  sandbox(id).frozen = false
  await until('the end of its gateway', () => !sandbox(id).running)
  await untilSettled(id, 'stopped')
})

test('a running agent that something else has frozen is thawed', async () => {
  const id = await asleep()
  await ask(id)
  await untilSettled(id, 'running')
  sandbox(id).frozen = true
  await until('its gateway to go on', () => !sandbox(id).frozen)
  await untilSettled(id, 'running')
  expect(driver.starts.get(id)).toBe(1)
})

test('an attempt that finds the agent frozen moves what is left of its memory', async () => {
  const id = await asleep()
  await query(`UPDATE instances SET generation = generation + 1 WHERE id = $1`, [id])
  chowder.queue.enqueue()
  await untilSettled(id, 'stopped')
  expect([did('freeze', id), sandbox(id).frozen]).toEqual([2, true])
})
