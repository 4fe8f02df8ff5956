import { pino } from 'pino'
import { afterAll, beforeEach, expect, test } from 'vitest'
import { allShards } from '#lifecycle/queue/shards.ts'
import { createUseWatch } from '#lifecycle/watch/use-watch.ts'
import { usualMaxima, usualResources } from '#settings/resources.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { startFakeGateway } from '../../support/fake-gateway.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const megabyte = 1024 * 1024
const within = () => AbortSignal.timeout(20_000)

const resources = { defaults: usualResources, maxima: usualMaxima }
let free = 100
/** With a floor of 10 bytes. */
const hostDisk = { read: async () => ({ freeBytes: free, floorBytes: 10, freeFiles: null, isLow: free < 10 }) }

const gateway = await startFakeGateway({})
const driver = new FakeDriver(() => gateway.endpoint)
const chowder = await openTestChowder({ sandboxes: driver, hostDisk })
await chowder.startWorker()
const { key } = await chowder.signUp()
const log = pino({ level: 'silent' })
const watch = createUseWatch({ ...chowder.deps, log, resources, hostDisk }, () => allShards)
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})
beforeEach(() => {
  free = 100
})

const call = (method: 'GET' | 'PATCH' | 'POST' | 'PUT', url: string, body?: object) =>
  chowder.call(method, url, { key, ...(body && { body }) })
const read = async (id: string) => (await call('GET', `/v1/instances/${id}`)).body
const query = async (text: string, values: unknown[] = []) => (await chowder.database.pool.query(text, values)).rows
const isRunning = async (id: string) => {
  const { status, limits, step } = await read(id)
  return status === 'running' && limits !== null && step === null
}
async function running(resources: object = {}): Promise<string> {
  const { id } = (await call('POST', '/v1/instances', { name: 'x', resources })).body
  await until('the instance to run', () => isRunning(id))
  return id
}
const look = () => watch.watch(within())
const reasons = async (id: string, type: string) =>
  ((await call('GET', `/v1/instances/${id}/events?type=${type}`)).body as { reason: string }[]).map(
    ({ reason }) => reason,
  )
const write = (id: string, size: number) =>
  call('PUT', `/v1/instances/${id}/files/content`, { path: 'notes.txt', content: 'x'.repeat(size) })

test('A7: an agent that fills its disk cannot be written to, is stopped, and starts once it has room', async () => {
  const id = await running({ disk_mb: 100 })
  const other = await running({ disk_mb: 100 })
  const fill = (megabytes: number) => driver.diskBytes.set(id, megabytes * megabyte)
  fill(70)
  await look()
  expect((await write(id, 10)).status).toBe(204)
  fill(99.5)
  await look()
  // What the API itself has written counts at once.
  expect((await write(id, 400_000)).status).toBe(204)
  expect(await write(id, 400_000)).toMatchObject({ status: 507, body: { error: { code: 'no_space' } } })
  fill(99.9)
  await look()
  expect(await write(id, 400_000)).toMatchObject({ status: 507 })
  expect((await write(other, 1)).status).toBe(204)
  expect((await read(id)).status).toBe('running')

  fill(101)
  await look()
  await until('the stop', async () => (await read(id)).status === 'stopped' && !driver.sandboxes.get(id)?.running)
  expect(await read(id)).toMatchObject({ stopped_for: 'disk' })
  const [reason] = await reasons(id, 'instance.stop')
  expect(reason).toBe('disk: it uses 0.1 of 0.1 GB of disk. Delete files, or raise resources.disk_mb, and start it.')
  const refused = (await call('POST', `/v1/instances/${id}/start`)).body
  expect(refused).toMatchObject({ status: 'error', error_message: expect.stringContaining('Delete some, or raise') })

  fill(60) // files were deleted
  expect((await call('POST', `/v1/instances/${id}/start`)).body).toMatchObject({ status: 'running', stopped_for: null })
  await look()
  expect((await write(id, 1)).status).toBe(204)
  expect((await read(other)).status).toBe('running')
})

test('an agent that was stopped for its disk starts with a higher limit', async () => {
  const id = await running({ disk_mb: 100 })
  driver.diskBytes.set(id, 150 * megabyte)
  await look()
  await until('the stop', async () => (await read(id)).status === 'stopped')
  await call('PATCH', `/v1/instances/${id}`, { resources: { disk_mb: 200 } })
  expect((await call('POST', `/v1/instances/${id}/start`)).body).toMatchObject({ status: 'running', stopped_for: null })
})

test('an agent that uses much memory is restarted when nobody uses it', async () => {
  const id = await running({ memory_mb: 2048 })
  const starts = () => driver.starts.get(id)
  driver.memoryBytes.set(id, 1600 * megabyte)
  await look()
  expect(starts()).toBe(1) // it has only just started

  const ready = `UPDATE instances SET ready_at = now() - interval '7 hours' WHERE id = $1`
  await query(ready, [id])
  await query(
    `INSERT INTO responses (id, organization_id, instance_id, session_key, status)
     SELECT gen_random_uuid(), organization_id, id, 'main', 'completed' FROM instances WHERE id = $1`,
    [id],
  )
  await look()
  expect(starts()).toBe(1) // somebody uses it
  await query('DELETE FROM responses WHERE instance_id = $1', [id])
  driver.memoryBytes.set(id, 1400 * megabyte)
  await look()
  expect(starts()).toBe(1) // it does not use much
  driver.memoryBytes.set(id, 1600 * megabyte)
  await look()
  await until('the restart', async () => starts() === 2 && (await isRunning(id)))
  expect(await reasons(id, 'instance.restart')).toEqual(['recycled: it used 1.6 of 2.0 GB of memory, and was idle.'])
  await look()
  expect([starts(), (await read(id)).status]).toEqual([2, 'running']) // not again so soon
})

test('an agent that a worker is at is left to it', async () => {
  const id = await running()
  const setRow = (columns: string) => query(`UPDATE instances SET ${columns} WHERE id = $1`, [id])
  await setRow(
    `generation = generation + 1, next_attempt_at = now() + interval '1 hour', ready_at = now() - interval '1 day'`,
  )
  driver.memoryBytes.set(id, 2000 * megabyte)
  await look()
  expect(await reasons(id, 'instance.restart')).toEqual([])
  await setRow('generation = observed_generation')
  await look()
  expect(await reasons(id, 'instance.restart')).toHaveLength(1)
})

test('limits that the organization or the operator has changed reach running agents', async () => {
  const id = await running()
  await call('PATCH', '/v1/organization', { resources: { pids: 300 } })
  await look()
  await until('the limit', async () => (await read(id)).limits.pids.value === 300)
  await call('PATCH', '/v1/organization', { resources: null })
  expect(driver.starts.get(id)).toBe(1)
})

test('F20: with hardly any room on the host an agent is stopped for its growth since then, and for no byte', async () => {
  const [quiet, slow] = [await running(), await running()]
  await look()
  free = 1
  const grow = async (id: string, bytes: number) => {
    driver.diskBytes.set(id, (driver.diskBytes.get(id) ?? 43e6) + bytes)
    await watch.guardHost(within())
    await look()
  }
  await grow(quiet, 1)
  await grow(slow, 40 * megabyte)
  expect([(await read(quiet)).status, (await read(slow)).status]).toEqual(['running', 'running'])
  await grow(slow, 40 * megabyte)
  await until('the stop', async () => (await read(slow)).status === 'stopped')
  expect(await read(slow)).toMatchObject({ stopped_for: 'disk' })
  await grow(quiet, 1)
  expect((await read(quiet)).status).toBe('running')
})

test('F20: with little room on the host nothing new is written, and the agent that takes the room is stopped', async () => {
  const [filler, quiet] = [await running(), await running()]
  await look()
  free = 9
  const full = { status: 507, body: { error: { code: 'host_disk_full' } } }
  expect(await call('POST', '/v1/instances', { name: 'x' })).toMatchObject(full)
  expect(await write(quiet, 1)).toMatchObject(full)
  expect((await call('GET', '/readyz')).body).toMatchObject({ status: 'degraded', checks: { disk: false } })
  await watch.guardHost(within())
  expect((await read(filler)).status).toBe('running') // nobody has taken much
  driver.diskBytes.set(filler, 43e6 + 100 * megabyte)
  await watch.guardHost(within())
  await until('the stop', async () => (await read(filler)).status === 'stopped')
  expect(await read(filler)).toMatchObject({ stopped_for: 'disk' })
  expect((await reasons(filler, 'instance.stop'))[0]).toMatch(/^disk: this host has almost no room left/)
  expect((await read(quiet)).status).toBe('running')
  expect(await call('POST', `/v1/instances/${filler}/start`)).toMatchObject(full)
  free = 100
  expect((await call('POST', `/v1/instances/${filler}/start`)).body.status).toBe('running')
  expect((await write(quiet, 1)).status).toBe(204)
})
