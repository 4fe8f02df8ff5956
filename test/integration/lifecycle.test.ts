import { setTimeout as sleep } from 'node:timers/promises'
import { isDeepStrictEqual } from 'node:util'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { createDriftDetector } from '#lifecycle/drift.ts'
import { FakeDriver } from '../support/fake-driver.ts'
import { startFakeGateway } from '../support/fake-gateway.ts'
import { hasQueue, queueBackend, queueKinds } from '../support/queue-backends.ts'
import { openTestChowder, type TestChowder } from '../support/test-chowder.ts'
import { until } from '../support/until.ts'

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
    const makeDueNow = () => chowder.database.pool.query(`UPDATE instances SET next_attempt_at = now()`)

    test('that is created comes up with its configuration, its token and its sandbox shown', async () => {
      const id = await create({ openclaw_config: { agent: { system_prompt: 'You are a lobster.' } } })
      const instance = await isIn(id, 'running')
      expect(instance).toMatchObject({
        sandbox_id: `fake-${id.slice(0, 8)}`,
        gateway_url: `http://chowder.test/v1/instances/${id}`,
      })
      const config = JSON.parse(driver.file(id, 'state/openclaw.json') ?? '{}')
      expect(config.gateway.auth).toEqual({ mode: 'token', token: expect.stringMatching(/^[0-9a-f]{64}$/) })
      expect(driver.file(id, 'state/workspace/SOUL.md')).toBe('You are a lobster.')
      expect((await rowOf(id)).attempts).toBe(1)
    })

    test('shows the step it is in, and none once it is settled', repeated, async () => {
      let seen: string | null = null
      driver.onCall = async (method, id) => {
        if (method === 'create') seen = (await call('GET', `/${id}/status`)).body.step
      }
      await isIn(await create(), 'running')
      expect(seen).toBe('createSandbox')
    })

    test('stops and starts with the same sandbox', async () => {
      const id = await create()
      await isIn(id, 'running')
      expect((await call('POST', `/${id}/stop`)).body).toMatchObject({
        status: 'stopped',
        gateway_url: expect.any(String),
      })
      expect(driver.sandboxes.get(id)?.running).toBe(false)
      expect((await call('POST', `/${id}/start`)).body).toMatchObject({ status: 'running' })
      expect(driver.starts.get(id)).toBe(2)
    })

    test('that is deleted leaves no sandbox, and no credentials of its channels and skills', repeated, async () => {
      const id = await create()
      await isIn(id, 'running')
      const { pool } = chowder.database
      await pool.query(
        `INSERT INTO channels (instance_id, channel, enabled, sealed_config) VALUES ($1, 'slack', false, 'v1.x')`,
        [id],
      )
      await pool.query(`INSERT INTO skills (instance_id, name, sealed_settings) VALUES ($1, 'weather', 'v1.x')`, [id])
      await call('DELETE', `/${id}`)
      await until('the sandbox to be gone', () => !driver.sandboxes.has(id))
      await isIn(id, 'terminated')
      const { rows } = await pool.query(
        'SELECT instance_id FROM channels WHERE instance_id = $1 UNION ALL SELECT instance_id FROM skills WHERE instance_id = $1',
        [id],
      )
      expect(rows).toEqual([])
    })

    test('that is deleted while it is provisioned is gone, and nothing was started for it afterwards', async () => {
      gateway.behaviour.health = 'starting'
      const id = await create()
      await until('the gateway to be started', () => driver.sandboxes.get(id)?.running)
      await call('DELETE', `/${id}`)
      await until('the sandbox to be gone', () => !driver.sandboxes.has(id))
      expect(driver.starts.get(id)).toBe(1)
    })

    test('whose platform’s replies are lost has one sandbox and one gateway all the same', repeated, async () => {
      driver.fail({ method: 'create', when: 'after' })
      driver.fail({ method: 'start', when: 'after' })
      const id = await create()
      await until(
        'both faults to have struck',
        async () => {
          await makeDueNow()
          return (await call('GET', `/${id}`)).body.status === 'running'
        },
        20_000,
      )
      expect(driver.starts.get(id)).toBe(1)
      expect([...driver.sandboxes.keys()].filter((known) => known === id)).toHaveLength(1)
    })

    test('whose platform fails is retried with a pause, and given up at the fifth attempt with a reason that names no secret of the host', async () => {
      driver.fail({ method: 'create', times: 99, error: new Error('EACCES /var/lib/secret') })
      const askedAt = Date.now()
      const id = await create()
      await until('the first failure', async () => (await rowOf(id)).error_message)
      expect((await rowOf(id)).next_attempt_at.getTime()).toBeGreaterThanOrEqual(askedAt + 500)
      expect((await call('GET', `/${id}`)).body).toMatchObject({ status: 'provisioning', error_message: null })
      await until(
        'it to be given up',
        async () => {
          await makeDueNow()
          return (await call('GET', `/${id}`)).body.status === 'error'
        },
        40_000,
      )
      const { body } = await call('GET', `/${id}`)
      expect(body.error_message).toBe(
        'The step createSandbox failed. The reason is in Chowder’s log.'.replace('’', "'"),
      )
      expect(driver.calls.filter((made) => made.method === 'create' && made.id === id)).toHaveLength(5)
      driver.heal()
      expect((await call('POST', `/${id}/start`)).body.status).toBe('running')
    })

    test(
      'whose gateway ends with code 78 is an error at once, with the gateway’s words and without our token',
      repeated,
      async () => {
        driver.exitAfterStart = () => 78
        driver.onCall = (method, id) => {
          const token = JSON.parse(driver.file(id, 'state/openclaw.json') ?? '{}').gateway?.auth.token
          if (method === 'start') driver.output = `openclaw.json:1 — gateway.port: Invalid input, token ${token}`
        }
        const id = await create()
        const { error_message } = await isIn(id, 'error')
        expect(error_message).toContain('gateway.port: Invalid input, token ***')
        expect(driver.starts.get(id)).toBe(1)
      },
    )

    test.each([
      ['crashes at its start', 1, 'a stack trace'],
      [
        'is too slow for its own lock at its start',
        78,
        'gateway.maintenance_required: the lease was not refreshed in time',
      ],
    ])('whose gateway %s is tried again', repeated, async (_, code, words) => {
      let crashes = 2
      driver.output = words
      driver.exitAfterStart = () => (crashes-- > 0 ? code : null)
      const id = await create()
      await until(
        'it to run',
        async () => {
          await makeDueNow()
          return (await call('GET', `/${id}`)).body.status === 'running'
        },
        30_000,
      )
      expect(driver.starts.get(id)).toBe(3)
    })

    test('whose gateway shows no progress ends in a reason, and what was started is stopped', {
      ...repeated,
      timeout: 70_000,
    }, async () => {
      gateway.behaviour.health = 'starting'
      const id = await create()
      await until(
        'it to be given up',
        async () => {
          await makeDueNow()
          return (await call('GET', `/${id}`)).body.status === 'error'
        },
        60_000,
      )
      expect((await call('GET', `/${id}`)).body.error_message).toContain('was not ready')
      expect(driver.sandboxes.get(id)?.running).toBe(false)
    })

    test('whose gateway dies by itself is provisioning, then running again', repeated, async () => {
      const id = await create()
      await isIn(id, 'running')
      const seen = Promise.withResolvers<void>()
      driver.onCall = (method, of) => (method === 'start' && of === id ? seen.promise : undefined)
      driver.die(id, 137)
      await until('the death to be noticed', async () => (await call('GET', `/${id}`)).body.status === 'provisioning')
      seen.resolve()
      await isIn(id, 'running')
      expect(driver.starts.get(id)).toBe(2)
    })

    test(
      'whose gateway keeps ending is provisioning from then on, also while it waits for its next start',
      repeated,
      async () => {
        const id = await create()
        await isIn(id, 'running')
        // As many as were started in the last minutes.
        await chowder.database.pool.query('UPDATE instances SET attempts = 4 WHERE id = $1', [id])
        driver.die(id, 3)
        const isWaiting = async () => {
          const { body } = await call('GET', `/${id}`)
          return body.status !== 'running' && body.step === 'startGateway' && body
        }
        const waiting = await until('the death to be noticed', isWaiting)
        expect(waiting).toMatchObject({ status: 'provisioning', error_message: null })
        expect((await rowOf(id)).error_message).toBe('The gateway ended by itself (exit code 3).')
        await sleep(1000)
        expect(driver.starts.get(id), 'its pause is of some seconds').toBe(1)
        expect(await rowOf(id)).toMatchObject({ attempts: 4 })
        await isIn(id, 'running')
        expect(driver.starts.get(id)).toBe(2)
        expect(await rowOf(id)).toMatchObject({ attempts: 5 })
      },
    )

    test('whose gateway is found somewhere else is reached there, and was not disturbed', repeated, async () => {
      const id = await create()
      await isIn(id, 'running')
      const other = await startFakeGateway({})
      try {
        // It answers, as the gateway of another agent would.
        await chowder.database.pool.query('UPDATE instances SET endpoint = $2 WHERE id = $1', [id, JSON.stringify(other.endpoint)]) // biome-ignore format: short
        const endpointOf = async () =>
          (await chowder.database.pool.query('SELECT endpoint FROM instances WHERE id = $1', [id])).rows[0].endpoint
        await until('the row to say so', async () => isDeepStrictEqual(await endpointOf(), gateway.endpoint), 15_000)
        await isIn(id, 'running')
        expect(driver.starts.get(id)).toBe(1)
      } finally {
        await other.close()
      }
    })

    test('that has stopped since its sandbox was listed is left alone', repeated, async () => {
      const id = await create()
      await isIn(id, 'running')
      await call('POST', `/${id}/stop`)
      await isIn(id, 'stopped')
      const list = async function* () {
        yield { id, state: 'running' as const }
      }
      const sandboxes = Object.create(driver, { list: { value: list } })
      const look = createDriftDetector({ ...chowder.deps, sandboxes })
      const { generation } = await rowOf(id)
      for (let count = 0; count < 2; count += 1) await look(AbortSignal.timeout(5000))
      expect((await rowOf(id)).generation).toBe(generation)
    })

    test('whose sandbox was left over after its end is destroyed', repeated, async () => {
      const id = await create()
      await isIn(id, 'running')
      const sandbox = driver.sandboxes.get(id)
      await call('DELETE', `/${id}`)
      await until('the sandbox to be gone', () => !driver.sandboxes.has(id))
      await isIn(id, 'terminated')
      if (sandbox) driver.sandboxes.set(id, sandbox)
      await until('it to be gone again', () => !driver.sandboxes.has(id), 15_000)
    })

    test('whose destruction fails is terminated all the same and destroyed in the end', repeated, async () => {
      const id = await create()
      await isIn(id, 'running')
      driver.fail({ method: 'destroy', times: 3 })
      await call('DELETE', `/${id}`)
      expect((await call('GET', `/${id}`)).body.status).toBe('terminated')
      await until(
        'the sandbox to be gone',
        async () => {
          await makeDueNow()
          return !driver.sandboxes.has(id)
        },
        30_000,
      )
      expect((await call('GET', `/${id}`)).body.status).toBe('terminated')
    })

    test('whose bell was lost is found by the sweep', async () => {
      const { enqueue: ring } = chowder.queue
      chowder.queue.enqueue = () => {}
      chowder.deps.queue.enqueue = () => {}
      const id = await create()
      chowder.queue.enqueue = ring
      chowder.deps.queue.enqueue = ring
      await isIn(id, 'running')
    })

    test('that is rung for twenty times at once is started once', async () => {
      const id = await create()
      const row = { id, organizationId: '', generation: 1, leaseToken: 0 }
      for (let queue = 0; queue < 20; queue += 1) chowder.queue.enqueue({ ...row, leaseToken: queue })
      await isIn(id, 'running')
      expect(driver.starts.get(id)).toBe(1)
    })

    test('that hangs is restarted only after the look from inside failed too', {
      ...repeated,
      timeout: 70_000,
    }, async () => {
      const id = await create()
      await isIn(id, 'running')
      gateway.behaviour.health = 'failing'
      driver.execResult = { exitCode: 0, stdout: '', stderr: '' }
      await until(
        'a look from inside',
        () => driver.calls.some((made) => made.method === 'exec' && made.id === id),
        25_000,
      )
      expect(driver.starts.get(id)).toBe(1)
      expect((await call('GET', `/${id}`)).body.status).toBe('running')
      driver.execResult = { exitCode: 1, stdout: '', stderr: '' }
      await until('a restart', () => driver.starts.get(id) === 2, 30_000)
      gateway.behaviour.health = 'ok'
      await isIn(id, 'running')
    })
  })
})

describe('an instance of another engine', () => {
  test('is left alone by this worker, which says so', async () => {
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
  test('is an error with words at the first start', async () => {
    // Below a path, as of a gateway to several vendors, which knows no other.
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
    expect(driver.sandboxes.size).toBe(0)
    await chowder.close()
    provider.close()
  })
})
