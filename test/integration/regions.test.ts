import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest'
import { createRegions } from '#instances/regions.ts'
import { FakeDriver } from '../support/fake-driver.ts'
import { startFakeGateway } from '../support/fake-gateway.ts'
import { openTestChowder, type TestChowder } from '../support/test-chowder.ts'
import { until } from '../support/until.ts'

const gateway = await startFakeGateway({})
const north = new FakeDriver(() => gateway.endpoint)
const south = new FakeDriver(() => gateway.endpoint)
let chowder: TestChowder
let key: string

beforeAll(async () => {
  chowder = await openTestChowder({
    regions: (shared) =>
      createRegions({
        regions: [
          { ...shared, region: 'north', hasUnnamed: true, sandboxes: north },
          { ...shared, region: 'south', hasUnnamed: false, sandboxes: south },
        ],
        default: 'south',
        areNamed: true,
      }),
  })
})
beforeEach(async () => {
  ;({ key } = await chowder.signUp())
})
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})

const call = (method: 'GET' | 'POST' | 'PATCH', path: string, body?: unknown) =>
  chowder.call(method, `/v1${path}`, { key, ...(body !== undefined && { body }) })

async function create(region?: string | null): Promise<{ id: string; region: string | null }> {
  const { status, body } = await call('POST', '/instances', { name: 'a', ...(region !== undefined && { region }) })
  expect(status).toBe(201)
  return body
}

test('an instance has the region that its creator names, else the default one', async () => {
  expect((await create('north')).region).toBe('north')
  expect((await create()).region).toBe('south')
  const { id, region } = await create(null)
  expect(region).toBe('south')
  expect((await call('GET', `/instances/${id}`)).body.region).toBe('south')
})

test('an unknown region is a 400 that lists the known ones, in a create and in a list', async () => {
  const expected = { status: 400, body: { error: { code: 'unknown_region', param: 'region' } } }
  const created = await call('POST', '/instances', { name: 'a', region: 'east' })
  expect(created).toMatchObject(expected)
  expect(created.body.detail).toBe('region "east" is unknown. Use one of: north, south.')
  expect(await call('GET', '/instances?region=east')).toMatchObject(expected)
  expect((await call('GET', '/instances')).body).toEqual([])
})

test('a list has the instances of one region, with the rows of before that name none', async () => {
  const [inNorth, inSouth, ofBefore] = [await create('north'), await create('south'), await create('south')]
  await chowder.database.pool.query('UPDATE instances SET region = NULL WHERE id = $1', [ofBefore.id])
  const ids = async (query: string) =>
    (await call('GET', `/instances${query}`)).body.map(({ id, region }: { id: string; region: string }) => [id, region])
  expect(await ids('?region=north')).toEqual([
    [ofBefore.id, 'north'],
    [inNorth.id, 'north'],
  ])
  expect(await ids('?region=south')).toEqual([[inSouth.id, 'south']])
  expect(await ids('')).toHaveLength(3)
})

test('the regions are listed with what runs agents there', async () => {
  const of = (name: string, isDefault: boolean) => ({
    name,
    default: isDefault,
    engine: 'fake',
    isolation: 'Nothing runs.',
    takes_new_instances: true,
  })
  expect((await call('GET', '/regions')).body).toEqual([of('north', false), of('south', true)])
  expect((await chowder.call('GET', '/readyz')).body.isolation).toBe('north: Nothing runs. south: Nothing runs.')
})

test('a worker makes each sandbox in the region of its row, and its log is read there', async () => {
  const worker = await chowder.startWorker()
  const [inNorth, inSouth] = [await create('north'), await create('south')]
  for (const { id } of [inNorth, inSouth]) {
    await until('the agent to run', async () => (await call('GET', `/instances/${id}`)).body.status === 'running')
  }
  expect([north, south].map(({ sandboxes }) => [inNorth, inSouth].map(({ id }) => sandboxes.has(id)))).toEqual([
    [true, false],
    [false, true],
  ])
  north.output = 'of the north\n'
  south.output = 'of the south\n'
  const [ofNorth, ofSouth] = await Promise.all(
    [inNorth, inSouth].map(async ({ id }) => (await call('GET', `/instances/${id}/logs`)).body[0].text),
  )
  expect([ofNorth, ofSouth]).toEqual(['of the north', 'of the south'])
  await worker.stop()
})
