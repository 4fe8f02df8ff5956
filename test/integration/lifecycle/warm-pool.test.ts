import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { findOrganization } from '#api/organization/operator.ts'
import { setRegionState } from '#instances/region-states.ts'
import { countOrganizations, poolOrganizationId } from '#instances/warm-pool.ts'
import { warmPoolTask } from '#lifecycle/watch/warm-pool.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { startFakeGateway } from '../../support/fake-gateway.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const within = () => AbortSignal.timeout(20_000)
const gigabyte = 1024 ** 3
const gateway = await startFakeGateway({})
gateway.methods = {
  agent: ({ idempotencyKey }) => ({ runId: idempotencyKey, status: 'accepted' }),
  'agent.wait': ({ runId }) => ({ runId, status: 'error', endedAt: 1 }),
}
afterAll(() => gateway.close())

async function openPool(warmPool: number) {
  const driver = new FakeDriver(() => gateway.endpoint)
  const chowder = await openTestChowder({ sandboxes: driver, warmPool })
  const { key, id: organizationId } = await chowder.signUp()
  const query = async (text: string, values: unknown[] = []) => (await chowder.database.pool.query(text, values)).rows
  const call = (method: 'GET' | 'PATCH' | 'POST' | 'DELETE', url: string, body?: object) =>
    chowder.call(method, url, { key, ...(body && { body }) })
  return {
    ...{ chowder, driver, key, organizationId, query, call },
    create: (fields: object = {}) => call('POST', '/v1/instances', { name: 'mine', ...fields }),
    /** The warm instances that are not terminated, oldest first. */
    warm: () =>
      query(
        `SELECT id, instance_status(instances) AS status FROM instances
        WHERE organization_id = $1 AND desired_state <> 'terminated' ORDER BY id`,
        [poolOrganizationId],
      ),
    fill: (size: 'auto' | number = warmPool, { name = 'fake', freeBytes = 64 * gigabyte } = {}) => {
      const sandboxes = Object.assign(Object.create(driver), { name })
      return warmPoolTask(
        { ...chowder.deps, warmPool: size, sandboxes },
        () => true,
        () => freeBytes,
      ).run(within())
    },
    /** Throws unless each organization counts the instances that it has. */
    async requireCounts() {
      const wrong = await query(`SELECT id FROM organizations o WHERE instance_count <> (
        SELECT count(*) FROM instances WHERE organization_id = o.id AND desired_state <> 'terminated')`)
      expect(wrong).toEqual([])
    },
  }
}

describe('a create', async () => {
  const { chowder, driver, key: _, organizationId, query, call, create, warm, fill, requireCounts } = await openPool(10)
  const statusOf = async (id: string) => (await call('GET', `/v1/instances/${id}/status`)).body.status
  const running = (id: string) => until('the instance to run', async () => (await statusOf(id)) === 'running')
  /** Waits until all ten warm instances are ready. */
  async function filled(): Promise<string[]> {
    await until('the pool to be full', async () => {
      await fill()
      return (await warm()).filter(({ status }) => status === 'running').length === 10
    })
    return (await warm()).map(({ id }) => id)
  }
  beforeAll(async () => {
    await chowder.startWorker()
    await running((await create()).body.id)
  })
  afterAll(() => chowder.close())

  test('gets a warm instance, which then has no trace of the pool', async () => {
    const ids = await filled()
    expect(gateway.calls.map(({ method }) => method)).toContain('agent')
    const { status, body } = await create({ name: 'Ada', external_id: 'e1', metadata: { team: 'a' } })
    expect([status, body.status, body.name]).toEqual([201, 'provisioning', 'Ada'])
    expect(ids).toContain(body.id)
    await running(body.id)
    const { body: read } = await call('GET', `/v1/instances/${body.id}`)
    expect(read).toMatchObject({ name: 'Ada', external_id: 'e1', metadata: { team: 'a' }, created_at: body.created_at })
    const { body: events } = await call('GET', `/v1/instances/${body.id}/events?order=asc`)
    expect(events.map(({ type }: { type: string }) => type)).toEqual(['instance.create', 'instance.running'])
    expect([driver.creations.get(body.id), driver.starts.get(body.id)]).toEqual([1, 1])
    const [session] = await query(
      'SELECT organization_id, due_at < now() + $2::interval AS soon FROM passing_sessions WHERE instance_id = $1',
      [body.id, '2 minutes'],
    )
    expect(session).toEqual({ organization_id: organizationId, soon: true })
    await requireCounts()
  })

  test('is one of fifty at once: each of ten warm instances is taken once, the others start cold', async () => {
    const ids = await filled()
    const created = (await Promise.all(Array.from({ length: 50 }, () => create()))).map(({ body }) => body.id as string)
    expect(new Set(created).size).toBe(50)
    expect(created.filter((id) => ids.includes(id)).sort()).toEqual(ids)
    await Promise.all(created.map(running))
    for (const id of created) expect(driver.creations.get(id), id).toBe(1)
    await requireCounts()
  })

  test('gets an instance of another provider, whose settings and limits a worker changes', async () => {
    const ids = await filled()
    await call('PATCH', '/v1/organization', { model_api_keys: { openai: 'sk-other' } })
    const fields = { model_provider: 'openai', instructions: 'Be brief.', resources: { memory_mb: 4096 } }
    const { body } = await create(fields)
    expect(ids).toContain(body.id)
    await running(body.id)
    expect(gateway.calls.some(({ method }) => method === 'config.patch')).toBe(true)
    expect((await call('GET', `/v1/instances/${body.id}`)).body).toMatchObject({
      ...fields,
      limits: { memory_mb: { value: 4096 } },
    })
  })

  test('that is refused leaves the warm instances in the pool', async () => {
    const { body } = await create({ external_id: 'taken' })
    await running(body.id)
    const ids = await filled()
    expect((await create({ external_id: 'taken' })).status).toBe(409)
    const existing = await create({ external_id: 'taken', if_exists: 'return' })
    expect([existing.status, existing.body.id]).toEqual([200, body.id])
    expect((await create({ model_provider: 'gemini' })).body.error.code).toBe('no_provider_key')
    await query('UPDATE organizations SET instance_limit = 1 WHERE id = $1', [organizationId])
    expect((await create()).body.error.code).toBe('instance_limit_reached')
    await query('UPDATE organizations SET instance_limit = 500 WHERE id = $1', [organizationId])
    expect((await warm()).map(({ id }) => id)).toEqual(ids)
    await requireCounts()
  })

  test('gets a warm instance whose gateway has ended unseen, and which is started again', async () => {
    const ids = await filled()
    for (const id of ids) {
      const sandbox = driver.sandboxes.get(id)
      if (sandbox) Object.assign(sandbox, { running: false, exit: { code: 1, oom: false } })
    }
    const { body } = await create()
    expect(ids).toContain(body.id)
    await running(body.id)
    expect([driver.creations.get(body.id), driver.starts.get(body.id)]).toEqual([1, 2])
  })

  test('takes the cold way when no warm instance fits, or none is ready', async () => {
    const ids = await filled()
    const isWarm = ({ body }: { body: { id: string } }) => ids.includes(body.id)
    expect(isWarm(await create({ isolation: 'two_rooms' }))).toBe(false)
    await query('UPDATE instances SET ready_at = NULL WHERE id = ANY($1)', [ids])
    expect(isWarm(await create())).toBe(false)
    await query("UPDATE instances SET ready_at = now(), openclaw_version = '2026.1.1' WHERE id = ANY($1)", [ids])
    expect(isWarm(await create())).toBe(false)
    // Warm instances of another release are replaced.
    expect((await filled()).filter((id) => ids.includes(id))).toEqual([])
  })
})

describe('the pool', async () => {
  const { chowder, key, organizationId, query, warm, fill, requireCounts } = await openPool(1)
  const ready = async () => {
    for (const { id } of await warm()) await chowder.markReady(id, gateway.endpoint)
  }
  afterAll(() => chowder.close())

  test('has no instance before the first one of its region', async () => {
    await fill()
    expect(await warm()).toEqual([])
    await chowder.createReady(key, gateway.endpoint)
  })

  test('begins one instance at a time, and none while a customer waits', async () => {
    await query('UPDATE instances SET generation = generation + 1 WHERE organization_id = $1', [organizationId])
    await fill(3)
    expect(await warm()).toEqual([])
    await query('UPDATE instances SET observed_generation = generation WHERE organization_id = $1', [organizationId])
    for (const count of [1, 2, 3, 3]) {
      await fill(3)
      await fill(3)
      expect(await warm()).toHaveLength(count)
      await ready()
    }
    await requireCounts()
  })

  test('deletes those that are too many', async () => {
    const [oldest] = await warm()
    await fill(1)
    expect(await warm()).toMatchObject([{ id: oldest.id, status: 'running' }])
    await requireCounts()
  })

  test('is no organization of a customer', async () => {
    expect(await countOrganizations(chowder.deps.db)).toBe(1)
    await expect(findOrganization(chowder.deps.db, 'Warm pool')).rejects.toThrow('There is no organization')
    await expect(findOrganization(chowder.deps.db, poolOrganizationId)).rejects.toThrow('There is no organization')
  })

  test('replaces an instance that was stopped', async () => {
    const [{ id }] = (await warm()) as [{ id: string }]
    await query(
      "UPDATE instances SET desired_state = 'stopped', updated_at = now() - interval '11 minutes' WHERE id = $1",
      [id],
    )
    await fill(1)
    expect((await warm()).map((row) => row.id)).not.toContain(id)
    await ready()
  })

  test('replaces an instance that failed after ten minutes', async () => {
    const [{ id }] = (await warm()) as [{ id: string }]
    await query('UPDATE instances SET ready_at = NULL WHERE id = $1', [id])
    await fill(1)
    expect(await warm()).toMatchObject([{ id, status: 'error' }])
    await query("UPDATE instances SET updated_at = now() - interval '11 minutes' WHERE id = $1", [id])
    await fill(1)
    expect((await warm()).map((row) => row.id)).not.toContain(id)
    await ready()
  })

  test('is empty while its region is closed', async () => {
    await setRegionState(chowder.deps.db, 'fake', 'cordoned')
    await fill()
    expect(await warm()).toEqual([])
    await setRegionState(chowder.deps.db, 'fake', 'open')
  })

  test('has a local agent, with auto, while the machine has twice the memory of one', async () => {
    await query("UPDATE instances SET sandbox_driver = 'local'")
    const fillWith = (gigabytes: number) => fill('auto', { name: 'local', freeBytes: gigabytes * gigabyte })
    await fillWith(3)
    expect(await warm()).toEqual([])
    await fillWith(5)
    await ready()
    await fillWith(3)
    expect(await warm()).toMatchObject([{ status: 'running' }])
    await fillWith(1)
    expect(await warm()).toEqual([])
  })
})
