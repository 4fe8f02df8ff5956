import { afterAll, expect, test } from 'vitest'
import type { Finding } from '#commands/doctor/finding.ts'
import { vulnerableReleases } from '#commands/doctor/releases.ts'
import { loadConfig } from '#settings/config.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { startFakeGateway } from '../../support/fake-gateway.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const tooNew = '2099.1.1'
const gateway = await startFakeGateway({ config: { browser: { enabled: false } } })
const driver = new FakeDriver(() => gateway.endpoint)
const before = await openTestChowder({ sandboxes: driver })
const after = await openTestChowder({ sandboxes: driver, database: before.database, minOpenclawVersion: tooNew })
afterAll(async () => {
  await after.close()
  await before.close()
  await gateway.close()
})

const { id: organizationId, key } = await before.signUp()
const create = async () => (await before.call('POST', '/v1/instances', { key, body: { name: 'x' } })).body.id
const statusOf = async (id: string) => (await before.call('GET', `/v1/instances/${id}`, { key })).body
const refused = { code: 'release_refused', detail: expect.stringContaining(`is older than ${tooNew}`) }

test('A24: create, start and restart of a release that is too old are refused, and change nothing', async () => {
  const id = await create()
  const count = () => before.database.pool.query('SELECT id, generation, desired_state FROM instances ORDER BY id')
  const { rows } = await count()
  const created = await after.call('POST', '/v1/instances', { key, body: { name: 'y' } })
  expect(created).toMatchObject({ status: 409, body: { detail: refused.detail, error: { code: refused.code } } })
  for (const action of ['start', 'restart']) {
    const answer = await after.call('POST', `/v1/instances/${id}/${action}`, { key })
    expect(answer).toMatchObject({ status: 409, body: { detail: refused.detail, error: { code: refused.code } } })
  }
  expect((await count()).rows).toEqual(rows)
})

test('A24: a worker starts no agent of a release that is too old, and says why', async () => {
  const id = await create()
  const worker = await after.startWorker()
  const failed = await until('the instance to fail', async () => {
    const instance = await statusOf(id)
    return instance.status === 'error' ? instance : null
  })
  expect(failed.error_message).toContain(`is older than ${tooNew}, the oldest that this server starts.`)
  expect(driver.sandboxes.get(id)).toBeUndefined()
  await worker.stop()

  await before.startWorker()
  await before.call('POST', `/v1/instances/${id}/start`, { key })
  expect((await statusOf(id)).status).toBe('running')
})

test('A24: the list of releases says which are refused', async () => {
  expect((await before.call('GET', '/v1/releases', { key })).body).toMatchObject([{ refused: false, advisories: [] }])
  expect((await after.call('GET', '/v1/releases', { key })).body).toMatchObject([{ refused: true, advisories: [] }])
})

test('A24: the doctor lists the agents of releases that are too old', async () => {
  const look = async (env: Record<string, string>) => {
    const deps = {
      config: loadConfig(env),
      db: before.deps.db,
      regions: [before.deps],
      vault: before.vault,
      queue: before.queue,
    }
    const found: Finding[] = []
    for await (const finding of vulnerableReleases(deps, AbortSignal.timeout(10_000))) found.push(finding)
    return found
  }
  expect(await look({})).toEqual([])
  const ids = await before.database.pool.query('SELECT id FROM instances WHERE organization_id = $1', [organizationId])
  const found = await look({ OPENCLAW_MIN_VERSION: tooNew })
  expect(found.map(({ what }) => what.match(/[0-9a-f-]{36}/)?.[0]).sort()).toEqual(ids.rows.map(({ id }) => id).sort())
})
