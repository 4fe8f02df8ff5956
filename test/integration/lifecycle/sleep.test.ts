import { afterAll, beforeEach, expect, test } from 'vitest'
import { setRegionState } from '#instances/region-states.ts'
import { allShards } from '#lifecycle/queue/shards.ts'
import { wakeTask } from '#lifecycle/watch/sleep.ts'
import { createUseWatch } from '#lifecycle/watch/use-watch.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { startFakeGateway } from '../../support/fake-gateway.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const within = () => AbortSignal.timeout(20_000)
const gateway = await startFakeGateway({})
const driver = new FakeDriver(() => gateway.endpoint)
const chowder = await openTestChowder({ sandboxes: driver })
await chowder.startWorker()
const { key, id: organizationId } = await chowder.signUp()
const watch = createUseWatch(chowder.deps, () => allShards)
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})

const atRest = { accounts: {} as object, jobs: [] as object[] | string, work: [] as object[] }
/** The answers of the gateways of all agents. */
let state = atRest
let held = 0
beforeEach(() => {
  state = atRest
  gateway.behaviour.health = 'ok'
  gateway.calls.length = 0
  gateway.methods = {
    'channels.status': () => ({ channelAccounts: state.accounts }),
    'cron.list': ({ offset }) => {
      const next = Number(offset) + 1
      const hasMore = next < state.jobs.length
      const page = Array.isArray(state.jobs) ? state.jobs.slice(next - 1, next) : state.jobs
      return { jobs: page, hasMore: hasMore && page !== state.jobs, ...(hasMore && { nextOffset: next }) }
    },
    'gateway.suspend.prepare': () => {
      if (state.work.length > 0) return { status: 'busy', activeCount: 1, blockers: state.work }
      held += 1
      return { status: 'ready', suspensionId: 'one', activeCount: 0, blockers: [] }
    },
    'gateway.suspend.resume': ({ suspensionId }) => {
      if (suspensionId === 'one') held -= 1
      return { ok: true, resumed: true }
    },
  }
})

const call = (method: 'GET' | 'PATCH' | 'POST' | 'DELETE', url: string, body?: object) =>
  chowder.call(method, url, { key, ...(body && { body }) })
const read = async (id: string) => (await call('GET', `/v1/instances/${id}`)).body
const query = async (text: string, values: unknown[] = []) => (await chowder.database.pool.query(text, values)).rows
const settled = async (id: string, status: string) => {
  const { status: latest, limits, step } = await read(id)
  return latest === status && limits !== null && step === (status === 'stopped' ? 'asleep' : null)
}
const minutesAgo = (id: string, minutes: number) =>
  query(`UPDATE instances SET ready_at = now() - make_interval(mins => $2) WHERE id = $1`, [id, minutes])
/** An agent that has run for an hour, and sleeps after ten minutes. */
async function running(fields: object = {}): Promise<string> {
  const { body } = await call('POST', '/v1/instances', { name: 'x', idle_timeout_seconds: 600, ...fields })
  await until('the instance to run', () => settled(body.id, 'running'))
  await minutesAgo(body.id, 60)
  return body.id
}
const look = () => watch.watch(within())
async function asleep(fields: object = {}): Promise<string> {
  const id = await running(fields)
  await look()
  await until('the instance to sleep', () => settled(id, 'stopped'))
  return id
}
const generationOf = async (id: string) => (await query('SELECT generation FROM instances WHERE id = $1', [id]))[0]
const reasons = async (id: string, type: string) =>
  ((await call('GET', `/v1/instances/${id}/events?type=${type}`)).body as { reason: string }[]).map(
    ({ reason }) => reason,
  )
const ask = (id: string, fields: object = {}) =>
  call('POST', `/v1/instances/${id}/responses`, { model: 'openclaw', input: 'hi', ...fields })
const inMinutes = (minutes: number) => Date.now() + minutes * 60_000
const job = (name: string, minutes: number) => ({
  id: name,
  name,
  enabled: true,
  state: { nextRunAtMs: inMinutes(minutes) },
})

test('an agent sleeps once it has been idle for its timeout, and not before', async () => {
  const [id, awake] = [await running(), await running({ idle_timeout_seconds: null })]
  await minutesAgo(id, 9)
  await look()
  expect(await read(id)).toMatchObject({ status: 'running', idle_timeout_seconds: 600, wake_on_request: true })
  await minutesAgo(id, 11)
  await look()
  await until('the instance to sleep', () => settled(id, 'stopped'))
  expect(await read(id)).toMatchObject({ step: 'asleep', stopped_for: 'idle', wakes_at: null })
  expect((await call('GET', `/v1/instances/${id}/status`)).body).toMatchObject({ status: 'stopped', step: 'asleep' })
  expect(await reasons(id, 'instance.stop')).toEqual(['asleep: idle for 600 s.'])
  expect(driver.sandboxes.get(id)?.running).toBe(false)
  expect(held).toBe(0)
  expect((await read(awake)).status).toBe('running')
})

test.for<[string, Partial<typeof state>]>([
  ['its gateway works', { work: [{ kind: 'task', count: 1, message: 'a secret of the tenant' }] }],
  ['a channel is connected', { accounts: { telegram: [{ configured: true, running: true }] } }],
  ['a channel reconnects', { accounts: { telegram: [{ configured: true, running: false }] } }],
  ['its cron is near', { jobs: [job('far', 60), job('near', 12)] }],
  ['its cron is overdue', { jobs: [job('late', -1)] }],
  ['its gateway lists no cron jobs', { jobs: 'none' }],
])('an agent stays awake while %s', async ([, changed]) => {
  const id = await running()
  state = { ...state, ...changed }
  await look()
  expect((await read(id)).status).toBe('running')
  expect(await reasons(id, 'instance.stop')).toEqual([])
  expect(chowder.logged.join('')).not.toContain('secret of the tenant')
  await call('DELETE', `/v1/instances/${id}`)
})

const turn = `INSERT INTO turn_lines (instance_id, session_key, turns) VALUES ($1, 'main', '{a}')`

test('an agent stays awake while a turn or a background turn is not over, and is not asked', async () => {
  const [waits, runs] = [await running(), await running()]
  await query(turn, [waits])
  await query(
    `INSERT INTO responses (id, organization_id, instance_id, session_key, status, sealed_request, process_id, created_at)
     VALUES (gen_random_uuid(), $2, $1, 'main', 'in_progress', 'x', gen_random_uuid(), now() - interval '1 hour')`,
    [runs, organizationId],
  )
  gateway.calls.length = 0
  await look()
  expect([(await read(waits)).status, (await read(runs)).status]).toEqual(['running', 'running'])
  expect(gateway.calls).toEqual([])
})

test('a turn that begins while the gateway is asked keeps the agent awake', async () => {
  const id = await running()
  gateway.methods['gateway.suspend.resume'] = async () => {
    await query(turn, [id])
    return { ok: true, resumed: true }
  }
  await look()
  expect((await read(id)).status).toBe('running')
})

test('an agent whose channels are off and whose jobs are disabled or of OpenClaw itself sleeps without an alarm', async () => {
  const accounts = {
    telegram: [{ configured: false, running: false }],
    slack: [{ configured: true, stateReason: 'disabled' }],
  }
  state = {
    ...atRest,
    accounts,
    jobs: [job('skill-collection-review-main', 1), { ...job('off', 1), enabled: false }, job('heartbeat-main', 1)],
  }
  const id = await asleep()
  expect(await read(id)).toMatchObject({ wakes_at: null })
})

test('twenty requests at once wake an agent with one start, and all are answered', async () => {
  const id = await asleep()
  const starts = driver.starts.get(id) ?? 0
  const { generation } = await generationOf(id)
  const answers = await Promise.all(Array.from({ length: 20 }, (_, index) => ask(id, { conversation: `c-${index}` })))
  expect(answers.map(({ status }) => status)).toEqual(Array.from({ length: 20 }, () => 200))
  expect((await generationOf(id)).generation).toBe(generation + 1)
  expect(await reasons(id, 'instance.start')).toEqual(['woken by a request.'])
  expect(driver.starts.get(id)).toBe(starts + 1)
  expect(await read(id)).toMatchObject({ status: 'running', stopped_for: null, step: null })
  await look() // it was just used
  expect((await read(id)).status).toBe('running')
})

test.for<[string, (id: string) => ReturnType<typeof call>, number]>([
  [
    'a chat completion',
    (id) =>
      call('POST', `/v1/instances/${id}/chat/completions`, {
        model: 'openclaw',
        messages: [{ role: 'user', content: 'hi' }],
      }),
    404,
  ],
  ['a list of sessions', (id) => call('GET', `/v1/instances/${id}/sessions`), 400],
  ['an update of a skill', (id) => call('POST', `/v1/instances/${id}/skills/x/update`, {}), 400],
])('%s wakes an agent', async ([, act]) => {
  const id = await asleep()
  const { status } = await act(id)
  expect(status).not.toBe(409)
  expect((await read(id)).status).toBe('running')
  expect(await reasons(id, 'instance.start')).toEqual(['woken by a request.'])
})

test('a background turn wakes an agent, and is accepted before that runs', async () => {
  const id = await asleep()
  gateway.behaviour.health = 'starting'
  expect(await ask(id, { background: true })).toMatchObject({ status: 200, body: { status: 'queued' } })
  expect((await read(id)).status).toBe('provisioning')
  gateway.behaviour.health = 'ok'
  await until('the instance to run', () => settled(id, 'running'))
  await until('the turn to be sent', () => gateway.calls.some(({ method }) => method === 'agent'))
})

test('a status, a file and a PATCH wake nobody', async () => {
  const id = await asleep()
  await call('GET', `/v1/instances/${id}/files`)
  await call('GET', `/v1/instances/${id}/skills`)
  expect((await call('PATCH', `/v1/instances/${id}`, { name: 'y', idle_timeout_seconds: null })).status).toBe(200)
  expect(await read(id)).toMatchObject({ name: 'y', step: 'asleep', stopped_for: 'idle' })
  expect((await ask(id)).status).toBe(200) // also without a timeout
})

test('without wake_on_request a request is refused, and a start wakes the agent', async () => {
  const id = await asleep({ wake_on_request: false })
  expect(await ask(id)).toMatchObject({ status: 409, body: { error: { code: 'instance_not_running' } } })
  expect((await read(id)).step).toBe('asleep')
  expect((await call('POST', `/v1/instances/${id}/start`)).body).toMatchObject({ status: 'running', stopped_for: null })
})

test('a stop of a sleeping agent is a stop like any other, and a delete deletes it', async () => {
  state = { ...atRest, jobs: [job('daily', 60)] }
  const id = await asleep()
  expect(await call('POST', `/v1/instances/${id}/stop`)).toMatchObject({
    status: 200,
    body: { status: 'stopped', step: null, stopped_for: null, wakes_at: null },
  })
  expect(await ask(id)).toMatchObject({ status: 409 })
  expect(await call('POST', `/v1/instances/${id}/stop`)).toMatchObject({ status: 409 })
  const other = await asleep()
  expect((await call('DELETE', `/v1/instances/${other}`)).status).toBeLessThan(300)
  await until('its end', () => !driver.sandboxes.has(other))
})

test('a sleeping agent is started 90 s before its cron is due, unless its organization or its region is closed', async () => {
  const due = inMinutes(60)
  state = { ...atRest, jobs: [job('far', 300), { ...job('daily', 0), state: { nextRunAtMs: due } }] }
  const id = await asleep()
  expect(Date.parse((await read(id)).wakes_at)).toBe(due - 90_000)
  const wake = wakeTask(chowder.deps, () => true)
  await wake.run(within())
  expect((await read(id)).step).toBe('asleep')

  const { db, region } = chowder.deps
  await setRegionState(db, region, 'drained')
  await query(`UPDATE instances SET wakes_at = now() - interval '1 s' WHERE id = $1`, [id])
  await wake.run(within())
  expect(await ask(id)).toMatchObject({ status: 409, body: { error: { code: 'region_closed' } } })
  await query('UPDATE organizations SET suspended_at = now() WHERE id = $1', [organizationId])
  await setRegionState(db, region, 'open')
  await wake.run(within())
  expect((await query('SELECT stopped_for FROM instances WHERE id = $1', [id]))[0].stopped_for).toBe('idle')
  await query('UPDATE organizations SET suspended_at = NULL WHERE id = $1', [organizationId])

  await until('the instance to run', () => settled(id, 'running')) // the worker's own task
  expect(await read(id)).toMatchObject({ wakes_at: null, stopped_for: null })
  expect(await reasons(id, 'instance.start')).toEqual(['woken for its cron.'])
})

test('a turn that its budget refuses wakes nobody', async () => {
  const id = await asleep({ budgets: [{ name: 'one', limit: { calls: 1 }, per: 'month' }] })
  await query(
    `INSERT INTO model_calls (id, organization_id, instance_id, provider, began_at, outcome)
     VALUES (gen_random_uuid(), $2, $1, 'anthropic', now(), 'completed')`,
    [id, organizationId],
  )
  expect((await ask(id)).status).toBe(402)
  expect((await read(id)).step).toBe('asleep')
})

test.for([
  ['59', 59],
  ['a month and a second', 2_592_001],
  ['a text', 'soon'],
])('an idle timeout of %s is refused', async ([, idle_timeout_seconds]) => {
  const { status, body } = await call('POST', '/v1/instances', { name: 'x', idle_timeout_seconds })
  expect([status, body.detail[0].loc]).toEqual([422, ['body', 'idle_timeout_seconds']])
})

test('an agent that takes long to wake is a 503 with Retry-After', { tags: ['long'], timeout: 90_000 }, async () => {
  const id = await asleep()
  gateway.behaviour.health = 'starting'
  driver.fail({ method: 'start', hangMs: 70_000 })
  const begun = performance.now()
  const answer = await ask(id)
  driver.heal()
  expect(answer).toMatchObject({
    status: 503,
    body: { error: { code: 'unavailable' } },
    headers: { 'retry-after': '5' },
  })
  expect(performance.now() - begun).toBeGreaterThan(59_000)
})

test('the operator sets the idle timeout of instances that are created without one', async () => {
  const other = await openTestChowder({ sandboxes: new FakeDriver(), idleTimeoutSeconds: 900 })
  try {
    const { key: otherKey } = await other.signUp()
    const timeoutOf = async (fields: object) =>
      (await other.call('POST', '/v1/instances', { key: otherKey, body: { name: 'x', ...fields } })).body
        .idle_timeout_seconds
    expect(await timeoutOf({})).toBe(900)
    expect(await timeoutOf({ idle_timeout_seconds: 60 })).toBe(60)
    expect(await timeoutOf({ idle_timeout_seconds: null })).toBe(null)
  } finally {
    await other.close()
  }
})
