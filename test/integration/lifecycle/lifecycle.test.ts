import { setTimeout as sleep } from 'node:timers/promises'
import { isDeepStrictEqual } from 'node:util'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest'
import { maxAttempts } from '#lifecycle/attempt/failures.ts'
import { allShards } from '#lifecycle/queue/shards.ts'
import { createDriftDetection } from '#lifecycle/watch/drift.ts'
import { endedByItselfPath } from '#openclaw/inside/launch.ts'
import { FakeDriver, type Loop } from '../../support/fake-driver.ts'
import { Refusal, startFakeGateway } from '../../support/fake-gateway.ts'
import { hasQueue, queueBackend, queueKinds } from '../../support/queue-backends.ts'
import { openTestChowder, type TestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const gateway = await startFakeGateway({ config: { browser: { enabled: false } } })
afterAll(() => gateway.close())

describe.each(queueKinds)('on the %s queue', (kind) => {
  // The queue carries no more than an instance's name: its other carrier repeats what does not depend on it.
  const repeated = kind === 'redis' ? { tags: ['long'] } : {}

  describe.runIf(hasQueue(kind))('an instance', () => {
    let driver: FakeDriver
    let chowder: TestChowder
    let key: string

    beforeAll(async () => {
      driver = new FakeDriver(() => gateway.endpoint)
      chowder = await openTestChowder({
        sandboxes: driver,
        queue: (database) => queueBackend(kind, database),
        timeouts: { startWithoutProgressMs: 1500 },
      })
      await chowder.startWorker()
      key = (await chowder.signUp()).key
    })
    afterAll(() => chowder.close())
    beforeEach(() => {
      driver.heal()
      driver.onCall = () => {}
      driver.exitAfterStart = null
      gateway.behaviour.health = 'ok'
    })
    afterEach(async () => {
      driver.heal()
      driver.onCall = () => {}
      for (const { id } of (await call('GET', '')).body) await call('DELETE', `/${id}`)
    })

    const call = (method: 'GET' | 'POST' | 'PATCH' | 'DELETE', path: string, body?: unknown) =>
      chowder.call(method, `/v1/instances${path}`, { key, ...(body !== undefined && { body }) })
    const create = async (fields: object = {}): Promise<string> =>
      (await call('POST', '', { name: 'x', ...fields })).body.id
    const isIn = (id: string, status: string, timeoutMs = 15_000) =>
      until(
        `${id} to be ${status}`,
        async () => {
          const { body } = await call('GET', `/${id}`)
          return body.status === status && body.step === null ? body : null
        },
        timeoutMs,
      )
    const rowOf = async (id: string) =>
      (await chowder.database.pool.query('SELECT * FROM instances WHERE id = $1', [id])).rows[0]
    const statusOf = async (id: string) => (await call('GET', `/${id}`)).body.status
    const makeDueNow = () => chowder.database.pool.query(`UPDATE instances SET next_attempt_at = now()`)
    /** Waits without the pauses before the next attempts. */
    const untilWithRetries = (what: string, isSo: () => Promise<unknown>, timeoutMs: number) =>
      until(what, async () => (await makeDueNow()) && isSo(), timeoutMs)

    test('that is created runs with its configuration and its token, and shows its sandbox', async () => {
      const id = await create({ model: 'claude-haiku-4-5', instructions: 'You are a lobster.' })
      const instance = await isIn(id, 'running')
      expect(instance).toMatchObject({
        sandbox_id: `fake-${id.slice(0, 8)}`,
        gateway_url: `http://chowder.test/v1/instances/${id}`,
      })
      const config = JSON.parse(driver.file(id, 'state/openclaw.json') ?? '{}')
      expect(config.agents.defaults.model).toEqual({ primary: 'anthropic/claude-haiku-4-5' })
      expect(config.gateway.auth).toMatchObject({ mode: 'token', token: { source: 'file', id: '/gatewayToken' } })
      const token = expect.stringMatching(/^[0-9a-f]{64}$/)
      expect(JSON.parse(driver.file(id, 'state/secrets.json') ?? '')).toEqual({
        gatewayToken: token,
        relayToken: token,
      })
      expect(driver.file(id, 'state/workspace/SOUL.md')).toBe('You are a lobster.')
      expect((await rowOf(id)).attempts).toBe(1)
    })

    test('shows its current step, and none once it is settled', repeated, async () => {
      let seen: string | null = null
      driver.onCall = async (method, id) => {
        if (method === 'create') seen = (await call('GET', `/${id}/status`)).body.step
      }
      await isIn(await create(), 'running')
      expect(seen).toBe('createSandbox')
    })

    test('starts although its agent put files in the place of its folders', repeated, async () => {
      const id = await create()
      await isIn(id, 'running')
      await call('POST', `/${id}/stop`)
      await isIn(id, 'stopped')
      const files = driver.sandboxes.get(id)?.files
      for (const path of [...(files?.keys() ?? [])]) if (/^(state|tmp)(\/|$)/.test(path)) files?.delete(path)
      const planted = { content: Buffer.from('mine'), mode: 0o600 }
      files?.set('state', planted).set('tmp', { content: null, mode: 0o700 }).set('tmp/.keep/x', planted)
      files?.set('tmp/.keep', { content: null, mode: 0o700 })
      await call('POST', `/${id}/start`)
      await isIn(id, 'running')
      expect(driver.file(id, 'state/openclaw.json')).toContain('"gateway"')
    })

    test('stops and starts with the same sandbox, without the backup that OpenClaw might restore', async () => {
      const id = await create()
      await isIn(id, 'running')
      const backup = 'state/openclaw.json.bak'
      driver.sandboxes.get(id)?.files.set(backup, { content: Buffer.from('{}'), mode: 0o600 })
      expect((await call('POST', `/${id}/stop`)).body).toMatchObject({
        status: 'stopped',
        gateway_url: expect.any(String),
      })
      expect(driver.sandboxes.get(id)?.running).toBe(false)
      expect((await call('POST', `/${id}/start`)).body).toMatchObject({ status: 'running' })
      expect([driver.starts.get(id), driver.file(id, backup)]).toEqual([2, null])
    })

    test('that is restarted has its gateway ended and started again, once, in the same sandbox', async () => {
      const id = await create()
      await isIn(id, 'running')
      driver.calls.length = 0
      const { status, body } = await call('POST', `/${id}/restart`)
      expect([status, body.status]).toEqual([200, 'provisioning'])
      expect((await call('POST', `/${id}/restart`)).status).toBe(200)
      await isIn(id, 'running')
      const acts = driver.calls.filter(({ method }) => method === 'stop' || method === 'start')
      expect(acts).toEqual([
        { method: 'stop', id },
        { method: 'start', id },
      ])
      expect([driver.creations.get(id), (await rowOf(id)).restart_generation]).toEqual([1, null])
      expect((await call('POST', `/${id}/restart?wait=20`)).body.status).toBe('running')
      expect(driver.starts.get(id)).toBe(3)
    })

    test.each([
      ['before the gateway has ended', 'stop', 'before', 2],
      ['after the gateway has ended', 'stop', 'after', 2],
      ['after it was started again', 'start', 'after', 2],
    ] as const)('whose restart fails %s is started again, once', repeated, async (_when, method, when, starts) => {
      const id = await create()
      await isIn(id, 'running')
      driver.fail({ method, when })
      await call('POST', `/${id}/restart`)
      await isIn(id, 'running')
      expect([driver.starts.get(id), (await rowOf(id)).restart_generation]).toEqual([starts, null])
    })

    test('that is started before its stop is done has its gateway ended first', async () => {
      const id = await create()
      await isIn(id, 'running')
      driver.fail({ method: 'stop', hangMs: 10_000 })
      const isStopping = () => driver.calls.some((made) => made.method === 'stop' && made.id === id)
      const stopping = call('POST', `/${id}/stop`)
      await until('the stop to begin', isStopping)
      await call('POST', `/${id}/start`)
      await isIn(id, 'running')
      expect((await stopping).status).toBe(200)
      expect([driver.starts.get(id), (await rowOf(id)).restart_generation]).toEqual([2, null])
    })

    test('that is stopped while it restarts stays stopped, and a later start does not end it again', async () => {
      const id = await create()
      await isIn(id, 'running')
      driver.fail({ method: 'stop', times: 2 })
      await call('POST', `/${id}/restart`)
      await chowder.database.pool.query(
        `UPDATE instances SET desired_state = 'stopped', generation = generation + 1 WHERE id = $1`,
        [id],
      )
      await until('the stop to be settled', async () => {
        const { generation, observed_generation } = await rowOf(id)
        return observed_generation === generation
      })
      const stops = () => driver.calls.filter((made) => made.method === 'stop' && made.id === id).length
      const before = stops()
      expect((await call('POST', `/${id}/start`)).body.status).toBe('running')
      expect(stops()).toBe(before)
    })

    test('that is deleted keeps no sandbox, and no credentials of its channels and skills', repeated, async () => {
      const id = await create()
      await isIn(id, 'running')
      const { pool } = chowder.database
      await pool.query(
        `INSERT INTO channels (instance_id, channel, enabled, sealed_config) VALUES ($1, 'slack', false, 'v1.x')`,
        [id],
      )
      await pool.query(`INSERT INTO skills (instance_id, name, sealed_settings) VALUES ($1, 'weather', 'v1.x')`, [id])
      await call('DELETE', `/${id}`)
      await until('the sandbox to be destroyed', () => !driver.sandboxes.has(id))
      await isIn(id, 'terminated')
      const { rows } = await pool.query(
        `SELECT instance_id FROM channels WHERE instance_id = $1
         UNION ALL SELECT instance_id FROM skills WHERE instance_id = $1`,
        [id],
      )
      expect(rows).toEqual([])
    })

    test('that is deleted while it is provisioned has no sandbox, and its gateway is not started again', async () => {
      gateway.behaviour.health = 'starting'
      const id = await create()
      await until('the gateway to be started', () => driver.sandboxes.get(id)?.running)
      await call('DELETE', `/${id}`)
      await until('the sandbox to be destroyed', () => !driver.sandboxes.has(id))
      expect(driver.starts.get(id)).toBe(1)
    })

    test('has one sandbox and one gateway when replies of the platform are lost', repeated, async () => {
      driver.fail({ method: 'create', when: 'after' })
      driver.fail({ method: 'start', when: 'after' })
      const id = await create()
      await untilWithRetries('it to run after both faults', async () => (await statusOf(id)) === 'running', 20_000)
      expect(driver.starts.get(id)).toBe(1)
      expect([...driver.sandboxes.keys()].filter((known) => known === id)).toHaveLength(1)
    })

    test('is retried with pauses when the platform fails, then given up with a reason without secrets', async () => {
      driver.fail({ method: 'create', times: 99, error: new Error('EACCES /var/lib/secret') })
      const askedAt = Date.now()
      const id = await create()
      await until('the first failure', async () => (await rowOf(id)).error_message)
      expect((await rowOf(id)).next_attempt_at.getTime()).toBeGreaterThanOrEqual(askedAt + 500)
      expect((await call('GET', `/${id}`)).body).toMatchObject({ status: 'provisioning', error_message: null })
      await untilWithRetries('it to be given up', async () => (await statusOf(id)) === 'error', 40_000)
      const { body } = await call('GET', `/${id}`)
      expect(body.error_message).toBe(
        'The step createSandbox failed. The reason is in Chowder’s log.'.replace('’', "'"),
      )
      expect(driver.calls.filter((made) => made.method === 'create' && made.id === id)).toHaveLength(5)
      driver.heal()
      expect((await call('POST', `/${id}/start`)).body.status).toBe('running')
    })

    test('waits for a platform that is away, however long that takes, and is asked of it once only', async () => {
      driver.isAway = true
      const id = await create()
      await until('the delay', async () => (await rowOf(id)).error_message)
      const asked = driver.calls.length
      const { lease_token } = await rowOf(id)
      await makeDueNow()
      await until('the next delay', async () => (await rowOf(id)).next_attempt_at.getTime() > Date.now() + 5000)
      expect((await rowOf(id)).lease_token, 'it is not claimed').toBe(lease_token)
      expect(await rowOf(id)).toMatchObject({ attempts: 0, ready_at: null, desired_state: 'running' })
      const waiting = { status: 'provisioning', step: 'waiting for the platform' }
      expect((await call('GET', `/${id}/status`)).body).toMatchObject(waiting)
      expect(driver.calls.slice(asked).filter((made) => made.id === id)).toEqual([])
      driver.isAway = false
      await untilWithRetries('it to run', async () => (await statusOf(id)) === 'running', 20_000)
      expect(driver.starts.get(id)).toBe(1)
    })

    test('that is deleted while its platform is away is destroyed once that is back', repeated, async () => {
      const id = await create()
      await isIn(id, 'running')
      driver.isAway = true
      await call('DELETE', `/${id}`)
      await until('the delete to wait', async () => (await rowOf(id)).step === 'waiting for the platform')
      await makeDueNow()
      await until('the delay', async () => (await rowOf(id)).next_attempt_at.getTime() > Date.now() + 5000)
      expect((await rowOf(id)).attempts).toBe(0)
      expect(driver.sandboxes.has(id)).toBe(true)
      driver.isAway = false
      await untilWithRetries('it to be destroyed', async () => !driver.sandboxes.has(id), 20_000)
    })

    test(
      'whose gateway exits with code 78 is an error at once, with the gateway’s output and without its token',
      repeated,
      async () => {
        driver.exitAfterStart = () => 78
        driver.onCall = (method, id) => {
          const token = JSON.parse(driver.file(id, 'state/secrets.json') ?? '{}').gatewayToken
          if (method === 'start') driver.output = `openclaw.json:1 — gateway.port: Invalid input, token ${token}`
        }
        const id = await create()
        const { error_message } = await isIn(id, 'error')
        expect(error_message).toContain('gateway.port: Invalid input, token ***')
        expect(driver.starts.get(id)).toBe(1)
      },
    )

    test('S16: what a gateway said last is for keys with the permission configure only', async () => {
      driver.output = 'the key of a customer'
      driver.exitAfterStart = () => 78
      const id = await create()
      await isIn(id, 'error')
      const seenWith = async (permissions: string[]) => {
        const body = { name: 'k', permissions, instance_ids: [id] }
        const { raw_key } = (await chowder.call('POST', '/v1/keys', { key, body })).body
        const { error_message } = (await chowder.call('GET', `/v1/instances/${id}`, { key: raw_key })).body
        const events = (await chowder.call('GET', `/v1/instances/${id}/events`, { key: raw_key })).body
        return [error_message, events.find(({ type }: { type: string }) => type === 'instance.failed').reason]
      }
      const sentence = 'The gateway ended while it started (exit code 78)'
      expect(await seenWith(['read', 'configure'])).toEqual(Array(2).fill(`${sentence}: the key of a customer`))
      expect(await seenWith(['read'])).toEqual(Array(2).fill(`${sentence}.`))
      driver.output = ''
    })

    test.each([
      ['crashes while it starts', 1, 'a stack trace'],
      [
        'does not refresh its lock in time while it starts',
        78,
        'gateway.maintenance_required: the lease was not refreshed in time',
      ],
    ])('whose gateway %s is tried again', repeated, async (_, code, output) => {
      let crashes = 2
      driver.output = output
      driver.exitAfterStart = () => (crashes-- > 0 ? code : null)
      const id = await create()
      await untilWithRetries('it to run', async () => (await statusOf(id)) === 'running', 30_000)
      expect(driver.starts.get(id)).toBe(3)
    })

    test('whose gateway makes no progress is an error with a reason, and its gateway is stopped', {
      ...repeated,
      timeout: 70_000,
    }, async () => {
      gateway.behaviour.health = 'starting'
      const id = await create()
      await untilWithRetries('it to be given up', async () => (await statusOf(id)) === 'error', 60_000)
      expect((await call('GET', `/${id}`)).body.error_message).toContain('was not ready')
      expect(driver.sandboxes.get(id)?.running).toBe(false)
    })

    test('whose gateway ends by itself is provisioning, then running again', repeated, async () => {
      const id = await create()
      await isIn(id, 'running')
      const seen = Promise.withResolvers<void>()
      driver.onCall = (method, of) => (method === 'start' && of === id ? seen.promise : undefined)
      driver.die(id, 137)
      await until('the end to be noticed', async () => (await statusOf(id)) === 'provisioning')
      seen.resolve()
      await isIn(id, 'running')
      expect(driver.starts.get(id)).toBe(2)
      expect(driver.file(id, endedByItselfPath), 'OpenClaw counts this end').toBe('')
      driver.onCall = () => {}
      await call('POST', `/${id}/restart`)
      await isIn(id, 'running')
      expect(driver.file(id, endedByItselfPath)).toBeNull()
    })

    test(
      'whose gateway ends again and again is provisioning, also during the pause before the next start',
      repeated,
      async () => {
        const id = await create()
        await isIn(id, 'running')
        // As after four starts in the last minutes.
        await chowder.database.pool.query('UPDATE instances SET attempts = 4 WHERE id = $1', [id])
        driver.die(id, 3)
        const isWaiting = async () => {
          const { body } = await call('GET', `/${id}`)
          return body.status !== 'running' && body.step === 'startGateway' && body
        }
        const waiting = await until('the end to be noticed', isWaiting)
        expect(waiting).toMatchObject({ status: 'provisioning', error_message: null })
        expect((await rowOf(id)).error_message).toBe('The gateway ended by itself (exit code 3).')
        await sleep(1000)
        expect(driver.starts.get(id), 'the pause takes some seconds').toBe(1)
        expect(await rowOf(id)).toMatchObject({ attempts: 4 })
        await isIn(id, 'running')
        expect(driver.starts.get(id)).toBe(2)
        expect(await rowOf(id)).toMatchObject({ attempts: 5 })
      },
    )

    test('whose gateway has another address is reached there, and is not restarted', repeated, async () => {
      const id = await create()
      await isIn(id, 'running')
      const other = await startFakeGateway({})
      try {
        // This address answers too, like the gateway of another agent.
        const endpoint = JSON.stringify(other.endpoint)
        await chowder.database.pool.query('UPDATE instances SET endpoint = $2 WHERE id = $1', [id, endpoint])
        const endpointOf = async () =>
          (await chowder.database.pool.query('SELECT endpoint FROM instances WHERE id = $1', [id])).rows[0].endpoint
        await until(
          'the row to have the address',
          async () => isDeepStrictEqual(await endpointOf(), gateway.endpoint),
          15_000,
        )
        await isIn(id, 'running')
        expect(driver.starts.get(id)).toBe(1)
      } finally {
        await other.close()
      }
    })

    test('that was stopped after its sandbox was listed does not become due', repeated, async () => {
      const id = await create()
      await isIn(id, 'running')
      await call('POST', `/${id}/stop`)
      await isIn(id, 'stopped')
      const list = async function* () {
        yield { id, state: 'running' as const }
      }
      const sandboxes = Object.create(driver, { list: { value: list } })
      const { detect: detectDrift } = createDriftDetection({ ...chowder.deps, sandboxes }, () => allShards)
      const { generation } = await rowOf(id)
      for (let count = 0; count < 2; count += 1) await detectDrift(AbortSignal.timeout(5000))
      expect((await rowOf(id)).generation).toBe(generation)
    })

    test('that is terminated and whose sandbox is left over has it destroyed', repeated, async () => {
      const id = await create()
      await isIn(id, 'running')
      const sandbox = driver.sandboxes.get(id)
      await call('DELETE', `/${id}`)
      await until('the sandbox to be destroyed', () => !driver.sandboxes.has(id))
      await isIn(id, 'terminated')
      if (sandbox) driver.sandboxes.set(id, sandbox)
      await until('it to be destroyed again', () => !driver.sandboxes.has(id), 15_000)
    })

    test(
      'whose sandbox cannot be destroyed at first is terminated at once, and its sandbox is destroyed later',
      repeated,
      async () => {
        const id = await create()
        await isIn(id, 'running')
        driver.fail({ method: 'destroy', times: 3 })
        await call('DELETE', `/${id}`)
        expect((await call('GET', `/${id}`)).body.status).toBe('terminated')
        await untilWithRetries('the sandbox to be destroyed', async () => !driver.sandboxes.has(id), 30_000)
        expect((await call('GET', `/${id}`)).body.status).toBe('terminated')
      },
    )

    test('whose job was lost is found by the sweep', async () => {
      const { enqueue } = chowder.queue
      chowder.queue.enqueue = () => {}
      chowder.deps.queue.enqueue = () => {}
      const id = await create()
      chowder.queue.enqueue = enqueue
      chowder.deps.queue.enqueue = enqueue
      await isIn(id, 'running')
    })

    test('that is enqueued twenty times at once is started once', async () => {
      const id = await create()
      for (let times = 0; times < 20; times += 1) {
        chowder.queue.enqueue()
        await sleep(1) // what is enqueued at the same time is one job
      }
      await isIn(id, 'running')
      expect(driver.starts.get(id)).toBe(1)
    })

    test('whose gateway does not answer is restarted only when it does nothing any more', {
      ...repeated,
      timeout: 70_000,
    }, async () => {
      const id = await create()
      await isIn(id, 'running')
      gateway.behaviour.health = 'failing'
      await until(
        'a look at what it does',
        () => driver.calls.some((made) => made.method === 'activity' && made.id === id),
        25_000,
      )
      expect(driver.starts.get(id)).toBe(1)
      expect((await call('GET', `/${id}`)).body.status).toBe('running')
      driver.loop = 'hangs'
      await until('a restart', () => driver.starts.get(id) === 2, 30_000)
      // The version before may have made its sandbox.
      expect(driver.calls.filter((made) => made.method === 'create' && made.id === id)).toHaveLength(2)
      driver.loop = 'turns'
      gateway.behaviour.health = 'ok'
      await isIn(id, 'running')
    })
  })
})

test('F28: gateways of three organizations that never become ready hold no slot of a worker', async () => {
  const good = new Set<string>()
  // Nobody answers at this port.
  const driver = new FakeDriver((id) => (good.has(id) ? gateway.endpoint : { kind: 'tcp', host: '127.0.0.1', port: 9 }))
  const timeouts = { startWithoutProgressMs: 60_000, startMs: 60_000 }
  const chowder = await openTestChowder({ sandboxes: driver, timeouts })
  onTestFinished(() => chowder.close())
  await chowder.startWorker(1)
  const create = async (key: string): Promise<string> =>
    (await chowder.call('POST', '/v1/instances', { key, body: { name: 'x' } })).body.id
  // With 8 starts at the same time they are 4, 2 and 1; with more it is the 10 rows of the worker that are shared.
  for (const started of [4, 6, 7]) {
    const { key } = await chowder.signUp()
    for (let count = 0; count < 5; count += 1) await create(key)
    await until(`${started} to start`, () => driver.starts.size >= started, 30_000)
  }
  const { key } = await chowder.signUp()
  for (let count = 0; count < 2; count += 1) {
    const id = await create(key)
    good.add(id)
    const statusOf = async () => (await chowder.call('GET', `/v1/instances/${id}`, { key })).body.status
    await until('one of another organization to run', async () => (await statusOf()) === 'running')
  }
  expect(driver.starts.size, 'those that hang wait').toBeLessThanOrEqual(11)
})

describe('an agent that is slow at times', () => {
  test('is looked at, and its history has no event of that', async () => {
    const driver = new FakeDriver(() => gateway.endpoint)
    driver.loop = 'hangs'
    const chowder = await openTestChowder({ sandboxes: driver, timeouts: { hungMs: 4000 } })
    await chowder.startWorker()
    const { key } = await chowder.signUp()
    const { id } = (await chowder.call('POST', '/v1/instances', { key, body: { name: 'x' } })).body
    const typesOf = async (): Promise<string[]> =>
      (await chowder.call('GET', `/v1/instances/${id}/events`, { key })).body.map(({ type }: { type: string }) => type)
    const rowOf = async () => (await chowder.database.pool.query('SELECT * FROM instances')).rows[0]
    const isSettled = async () => (await rowOf()).observed_generation === (await rowOf()).generation
    await until('it to run', async () => (await typesOf())[0] === 'instance.running')
    for (let looks = 1; looks <= 2; looks += 1) {
      gateway.behaviour.health = 'failing'
      await until('a look', async () => (await rowOf()).generation > looks)
      gateway.behaviour.health = 'ok'
      await until('its end', isSettled)
    }
    expect(await typesOf()).toEqual(['instance.running', 'instance.create'])
    gateway.behaviour.health = 'failing'
    await until('a restart', () => driver.starts.get(id) === 2, 30_000)
    gateway.behaviour.health = 'ok'
    await until('it to run again', isSettled)
    expect((await typesOf()).slice(0, 2)).toEqual(['instance.running', 'instance.gateway_ended'])
    await chowder.close()
  })
})

test('a gateway that did not answer before a worker took its row, and once after it, is not diagnosed yet', async () => {
  const driver = new FakeDriver(() => gateway.endpoint)
  const chowder = await openTestChowder({ sandboxes: driver })
  onTestFinished(async () => {
    gateway.behaviour.health = 'ok'
    await chowder.close()
  })
  const { key } = await chowder.signUp()
  const { id } = (await chowder.call('POST', '/v1/instances', { key, body: { name: 'x' } })).body
  const change = (columns: string) =>
    chowder.database.pool.query(`UPDATE instances SET ${columns} RETURNING generation`)
  await change(
    `observed_generation = generation, ready_at = now(), endpoint = '${JSON.stringify(gateway.endpoint)}', relay_token_hash = 'x'`,
  )
  const running = { state: 'running' as const, sandboxId: id, endpoint: gateway.endpoint, paths: null }
  const list = async function* () {
    yield { id, state: running.state }
  }
  const sandboxes = Object.create(driver, { observe: { value: async () => running }, list: { value: list } })
  const { detect: detectDrift } = createDriftDetection({ ...chowder.deps, sandboxes }, () => allShards)
  /** The generation of the row after the detection. */
  const detect = async (): Promise<number> => {
    await detectDrift(AbortSignal.timeout(5000))
    return (await chowder.database.pool.query('SELECT generation FROM instances WHERE id = $1', [id])).rows[0]
      .generation
  }
  gateway.behaviour.health = 'failing'
  expect(await detect()).toBe(1)
  await change(`lease_until = now() + interval '1 minute'`)
  expect(await detect()).toBe(1)
  await change('lease_until = now()')
  expect(await detect(), 'one failed check').toBe(1)
  expect(await detect(), 'two in a row').toBe(2)
})

describe('an agent that works and does not answer', () => {
  const busyMs = 5000
  let driver: FakeDriver
  let chowder: Awaited<ReturnType<typeof openTestChowder>>
  let key: string

  beforeAll(async () => {
    driver = new FakeDriver(() => gateway.endpoint)
    chowder = await openTestChowder({ sandboxes: driver, timeouts: { busyMs } })
    await chowder.startWorker()
    key = (await chowder.signUp()).key
  })
  afterAll(async () => {
    gateway.behaviour.health = 'ok'
    await chowder?.close()
  })

  afterEach(async () => {
    gateway.behaviour.health = 'ok'
    gateway.behaviour.onCall = () => {}
    driver.loop = 'turns'
    const { body } = await chowder.call('GET', path, { key })
    for (const { id } of body) await chowder.call('DELETE', `${path}/${id}`, { key })
  })

  const path = '/v1/instances'
  const shown = async (id: string) => (await chowder.call('GET', `${path}/${id}`, { key })).body
  const statusOf = async (id: string) => (await chowder.call('GET', `${path}/${id}/status`, { key })).body
  const busyIn = async (id: string) =>
    (await chowder.database.pool.query('SELECT busy FROM instances WHERE id = $1', [id])).rows[0].busy
  const isFree = async (id: string): Promise<boolean> =>
    (await chowder.database.pool.query('SELECT FROM instances WHERE id = $1 AND lease_until < now()', [id])).rows
      .length > 0
  const reasonsOf = async (id: string): Promise<string[]> =>
    (await chowder.call('GET', `${path}/${id}/events`, { key })).body.map(({ reason }: { reason: string }) => reason)
  /** As if the pause before the next look had passed. */
  const look = () => chowder.database.pool.query('UPDATE instances SET next_attempt_at = now()')
  const looks = (id: string) => driver.calls.filter((made) => made.method === 'activity' && made.id === id).length
  const isSettled = async (id: string) => (await look()) && (await shown(id)).step === null
  async function begin(loop: Loop): Promise<string> {
    gateway.behaviour.health = 'ok'
    const { id } = (await chowder.call('POST', path, { key, body: { name: 'x' } })).body
    await until('it to run', async () => (await shown(id)).status === 'running' && (await isSettled(id)))
    driver.loop = loop
    gateway.behaviour.health = 'failing'
    return id
  }

  test('is shown as busy between all looks, and is not restarted, however long its loop turns', async () => {
    const id = await begin('computes')
    await until('a busy agent', async () => (await shown(id)).step === 'busy')
    const seen: { status: string; step: string | null }[] = []
    for (const before = looks(id), end = performance.now() + busyMs + 1000; performance.now() < end; ) {
      await look()
      driver.activities.switches += 1
      seen.push(await shown(id), await statusOf(id))
      if (looks(id) > before + 100) break
      await sleep(100)
    }
    expect(new Set(seen.map(({ status, step }) => `${status} ${step}`))).toEqual(new Set(['running busy']))
    expect(driver.starts.get(id)).toBe(1)
    expect(await reasonsOf(id)).toContainEqual(expect.stringContaining('busy'))
    gateway.behaviour.health = 'ok'
    await until('it to be settled', () => isSettled(id))
    expect(await busyIn(id)).toBeNull()
    expect(await shown(id)).toMatchObject({ status: 'running', error_message: null })
    expect(driver.calls.filter((made) => made.id === id && made.method === 'stop')).toEqual([])
  }, 60_000)

  test('F21: is not restarted by a worker whose clock is ahead of that of the worker that looked before', async () => {
    const id = await begin('computes')
    await until('a busy agent', async () => (await busyIn(id)) !== null)
    vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + 3_600_000 })
    onTestFinished(() => void vi.useRealTimers())
    // The time of the longest work begins now, however long the test took to come here.
    await chowder.database.pool.query(
      `UPDATE instances SET busy = jsonb_set(busy, '{since}', to_jsonb(now())) WHERE id = $1`,
      [id],
    )
    const before = looks(id)
    await until('another look', async () => (await look()) && looks(id) > before && isFree(id))
    expect(driver.starts.get(id)).toBe(1)
  }, 60_000)

  test('hangs after all when its loop has not turned for the longest time, over all looks', async () => {
    const id = await begin('computes')
    await until('a busy agent', async () => (await shown(id)).step === 'busy')
    const since = performance.now()
    await until('a restart', async () => (await look()) && driver.starts.get(id) === 2, 30_000)
    expect(performance.now() - since).toBeGreaterThan(busyMs - 2000)
    gateway.behaviour.health = 'ok'
    driver.loop = 'turns'
    await until('it to run', () => isSettled(id))
    expect(await reasonsOf(id)).toContainEqual(expect.stringContaining('did not answer any more'))
  }, 60_000)

  test('has all its attempts left, though its configuration cannot be looked at', async () => {
    const id = await begin('computes')
    await until('a busy agent', async () => (await shown(id)).step === 'busy')
    let failures = 0
    gateway.behaviour.onCall = (method) => {
      if (method !== 'connect') return
      failures += 1
      gateway.behaviour.health = 'failing'
      throw new Refusal({ code: 'UNAVAILABLE', message: 'busy' })
    }
    for (; failures <= maxAttempts; await sleep(100)) {
      gateway.behaviour.health = 'ok'
      await look()
      await until('a look at it', () => gateway.behaviour.health === 'failing')
      driver.activities.switches += 1
      await until('its end', async () => isFree(id))
      expect((await shown(id)).status).toBe('running')
    }
    gateway.behaviour.onCall = () => {}
    gateway.behaviour.health = 'ok'
    await until('it to be settled', () => isSettled(id))
    expect([driver.starts.get(id), (await shown(id)).status]).toEqual([1, 'running'])
  }, 60_000)

  test('is stopped by its owner at once', async () => {
    const id = await begin('computes')
    await until('a busy agent', async () => (await shown(id)).step === 'busy')
    const { body } = await chowder.call('POST', `${path}/${id}/stop`, { key })
    expect(body).toMatchObject({ status: 'stopped', step: null })
  }, 60_000)
})

describe('an instance of another sandbox driver', () => {
  test('is not touched by this worker, which logs that', async () => {
    const driver = new FakeDriver(() => gateway.endpoint)
    const chowder = await openTestChowder({ sandboxes: driver })
    const { key } = await chowder.signUp()
    const { body } = await chowder.call('POST', '/v1/instances', { key, body: { name: 'x' } })
    await chowder.database.pool.query(`UPDATE instances SET sandbox_driver = 'docker'`)
    await chowder.startWorker()
    await until('the log line', () => chowder.logged.some((line) => line.includes('SANDBOX_DRIVER=docker')))
    expect((await chowder.call('GET', `/v1/instances/${body.id}`, { key })).body.status).toBe('provisioning')
    expect(driver.calls.filter(({ method }) => method !== 'list')).toEqual([])
    await chowder.close()
  })
})

describe('a key that the provider refuses', () => {
  test('is an error with a reason at the first start', async () => {
    // The API is below a path, as at a proxy for several providers.
    const provider = (await import('node:http')).createServer((request, response) =>
      response.writeHead(request.url?.startsWith('/anthropic/v1/models') ? 401 : 404).end('{}'),
    )
    await new Promise<void>((resolve) => provider.listen(0, '127.0.0.1', resolve))
    const { port } = provider.address() as import('node:net').AddressInfo
    const driver = new FakeDriver(() => gateway.endpoint)
    const chowder = await openTestChowder({ sandboxes: driver, providerUrl: `http://127.0.0.1:${port}/anthropic/` })
    await chowder.startWorker()
    const { key } = await chowder.signUp()
    const { body } = await chowder.call('POST', '/v1/instances', { key, body: { name: 'x' } })
    const instance = await until('an error', async () => {
      const { body: now } = await chowder.call('GET', `/v1/instances/${body.id}`, { key })
      return now.status === 'error' ? now : null
    })
    expect(instance.error_message).toContain("anthropic refused your organization's API key")
    const organization = (await chowder.call('GET', '/v1/organization', { key })).body
    expect(organization.model_api_keys.anthropic.refused_at).toEqual(expect.any(String))
    expect(driver.sandboxes.size).toBe(0)
    await chowder.close()
    provider.close()
  })
})
