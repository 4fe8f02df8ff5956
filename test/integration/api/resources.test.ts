import { afterAll, expect, test } from 'vitest'
import { setMaxResources } from '#api/organization/operator.ts'
import { noKeptLimits } from '#sandbox/driver.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { startFakeGateway } from '../../support/fake-gateway.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const gateway = await startFakeGateway({})
const driver = new FakeDriver(() => gateway.endpoint)
const chowder = await openTestChowder({ sandboxes: driver })
await chowder.startWorker()
const { id: organizationId, key } = await chowder.signUp()
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})

const call = (method: 'GET' | 'PATCH' | 'POST', url: string, body?: object) =>
  chowder.call(method, url, { key, ...(body && { body }) })
const read = async (id: string) => (await call('GET', `/v1/instances/${id}`)).body
async function running(body: object = {}): Promise<string> {
  const { id } = (await call('POST', '/v1/instances', { name: 'x', ...body })).body
  await until('the instance to run', async () => {
    const { status, limits } = await read(id)
    return status === 'running' && limits !== null
  })
  return id
}
const starts = (id: string) => driver.starts.get(id)
const kernel = (value: number) => ({ value, kept_by: 'kernel' })
const none = { memory_mb: null, cpus: null, pids: null, disk_mb: null }

test('an agent has the limits of its organization, and its own in their place', async () => {
  const id = await running({ resources: { memory_mb: 4096, cpus: null } })
  expect(await read(id)).toMatchObject({
    resources: { ...none, memory_mb: 4096 },
    limits: {
      memory_mb: kernel(4096),
      cpus: kernel(2),
      pids: kernel(512),
      disk_mb: { value: 10_240, kept_by: 'watch' },
    },
  })
  expect(driver.sandboxes.get(id)?.spec.resources).toEqual({ memoryMb: 4096, cpus: 2, pids: 512, diskMb: 10_240 })
})

test('a PATCH changes limits of a running agent without a restart, those that it names', async () => {
  const id = await running({ resources: { cpus: 1 } })
  const patched = await call('PATCH', `/v1/instances/${id}`, { resources: { memory_mb: 3072 } })
  expect(patched).toMatchObject({
    status: 200,
    body: { status: 'running', resources: { ...none, memory_mb: 3072, cpus: 1 } },
  })
  await until('the new limit', async () => (await read(id)).limits.memory_mb.value === 3072)
  expect(driver.limits.get(id)).toEqual({ memoryMb: 3072, cpus: 1, pids: 512, diskMb: 10_240 })
  await call('PATCH', `/v1/instances/${id}`, { resources: { cpus: null }, instructions: 'Be brief.' })
  await until('the limit of the organization', async () => (await read(id)).limits.cpus.value === 2)
  await call('PATCH', `/v1/instances/${id}`, { resources: null })
  await until('the limits of the organization', async () => (await read(id)).limits.memory_mb.value === 2048)
  expect([starts(id), (await read(id)).resources]).toEqual([1, none])
})

test('the limits of a stopped agent are those of its next start', async () => {
  const id = await running()
  await call('POST', `/v1/instances/${id}/stop`)
  await call('PATCH', `/v1/instances/${id}`, { resources: { pids: 100 } })
  expect(await read(id)).toMatchObject({ status: 'stopped', step: null, limits: { pids: kernel(512) } })
  await call('POST', `/v1/instances/${id}/start`)
  expect(await read(id)).toMatchObject({ status: 'running', limits: { pids: kernel(100) } })
})

test('a platform that keeps a limit no more says so', async () => {
  const id = await running()
  const limit = driver.limit.bind(driver)
  driver.limit = async () => noKeptLimits
  await call('PATCH', `/v1/instances/${id}`, { resources: { pids: 90 } })
  await until('the limits', async () => (await read(id)).limits.pids.value === 90)
  expect((await read(id)).limits).toMatchObject({
    memory_mb: { value: 2048, kept_by: 'nothing' },
    cpus: { value: 2, kept_by: 'nothing' },
    pids: { value: 90, kept_by: 'nothing' },
  })
  driver.limit = limit
})

test('nobody gets more than the operator allows, and an error says how much that is', async () => {
  const id = await running()
  for (const [method, url, body] of [
    ['POST', '/v1/instances', { name: 'x', resources: { cpus: 9 } }],
    ['PATCH', `/v1/instances/${id}`, { resources: { cpus: 9 } }],
    ['PATCH', '/v1/organization', { resources: { cpus: 9 } }],
  ] as const) {
    expect(await call(method, url, body)).toMatchObject({
      status: 400,
      body: {
        detail: 'resources.cpus is 9, and at most 8 is allowed here. The operator of this server can raise that.',
        error: { code: 'invalid_value', param: 'resources.cpus' },
      },
    })
  }
  expect((await read(id)).resources).toEqual(none)
  for (const resources of [{ memory_mb: 1 }, { memory_mb: 1000.5 }, { cpus: 0 }, { pids: '100' }, { disk: 500 }, 5]) {
    expect((await call('PATCH', `/v1/instances/${id}`, { resources })).status).toBe(422)
  }
  await setMaxResources(chowder.deps.db, organizationId, { cpus: 16 })
  expect(await call('PATCH', `/v1/instances/${id}`, { resources: { cpus: 9 } })).toMatchObject({ status: 200 })
  await until('the limit', async () => (await read(id)).limits.cpus.value === 9)
  await setMaxResources(chowder.deps.db, organizationId, {})
  expect((await call('GET', '/v1/organization')).body).toMatchObject({
    resources: { memory_mb: 2048, cpus: 2, pids: 512, disk_mb: 10_240 },
    max_resources: { memory_mb: 8192, cpus: 8, pids: 2048, disk_mb: 40_960 },
  })
  await call('POST', `/v1/instances/${id}/stop`)
  await call('POST', `/v1/instances/${id}/start`)
  expect(await read(id)).toMatchObject({ resources: { cpus: 9 }, limits: { cpus: kernel(8) } })
})

test('the organization sets the limits of agents that have none of their own', async () => {
  expect(await call('PATCH', '/v1/organization', { resources: { pids: 200, memory_mb: 2560 } })).toMatchObject({
    body: { resources: { memory_mb: 2560, cpus: 2, pids: 200, disk_mb: 10_240 } },
  })
  expect((await call('PATCH', '/v1/organization', { resources: { memory_mb: null } })).body.resources).toMatchObject({
    memory_mb: 2048,
    pids: 200,
  })
  const id = await running({ resources: { memory_mb: 2304 } })
  expect((await read(id)).limits).toMatchObject({ memory_mb: kernel(2304), pids: kernel(200) })
  await call('PATCH', '/v1/organization', { resources: null })
  expect((await call('GET', '/v1/organization')).body.resources.pids).toBe(512)
})

test('less memory than OpenClaw needs is refused with the way out', async () => {
  const id = await running()
  const bodies = [
    ['POST', '/v1/instances', { name: 'x', resources: { memory_mb: 1791 } }],
    ['PATCH', `/v1/instances/${id}`, { resources: { memory_mb: 1791 } }],
    ['PATCH', '/v1/organization', { resources: { memory_mb: 1791 } }],
  ] as const
  for (const [method, url, body] of bodies) {
    const rule = 'must be at least 1792: OpenClaw needs that to use a tool; leave it out, or send null, for the default'
    expect(await call(method, url, body)).toMatchObject({
      status: 422,
      body: { detail: [{ msg: rule }], error: { param: 'resources.memory_mb' } },
    })
  }
})
