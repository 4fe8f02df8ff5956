import { afterAll, beforeEach, describe, expect, test } from 'vitest'
import { administer, readCommandLine } from '#commands/admin/administer.ts'
import { createRegions } from '#instances/regions.ts'
import { startWorker } from '#lifecycle/worker.ts'
import { newId } from '#platform/ids.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { startFakeGateway } from '../../support/fake-gateway.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const gateway = await startFakeGateway({})
const north = new FakeDriver(() => gateway.endpoint)
const south = new FakeDriver(() => gateway.endpoint)
let key: string
let regions: ReturnType<typeof createRegions>

const chowder = await openTestChowder({
  regions: (shared) => {
    regions = createRegions({
      regions: [
        { ...shared, region: 'north', hasUnnamed: true, sandboxes: north },
        { ...shared, region: 'south', hasUnnamed: false, sandboxes: south },
        // It is the same platform under another name, with the same files.
        { ...shared, region: 'north-2', hasUnnamed: false, sandboxes: north },
      ],
      default: 'south',
      areNamed: true,
    })
    return regions
  },
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
  const expected = { status: 400, body: { error: { code: 'invalid_value', param: 'region' } } }
  const created = await call('POST', '/instances', { name: 'a', region: 'east' })
  expect(created).toMatchObject(expected)
  expect(created.body.detail).toBe('region "east" is unknown. Use one of: north, south, north-2.')
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
  expect((await call('GET', '/regions')).body).toEqual([of('north', false), of('south', true), of('north-2', false)])
  expect((await chowder.call('GET', '/readyz')).body.isolation).toBe(
    'north: Nothing runs. south: Nothing runs. north-2: Nothing runs.',
  )
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

test('a job that a worker of another region takes is soon taken by one of its own', async () => {
  const never = { sweepEveryMs: 600_000, driftEveryMs: 600_000 }
  const { deps, queue } = chowder
  const alive = ['north', 'south'].map((name) => ({ id: newId(), name, regions: [`fake/${name}`] }))
  const start = ({ id, name }: (typeof alive)[number]) => {
    const served = [{ ...deps, ...regions.named(name) }]
    const parts = { ...deps, processId: id, alive: () => alive, regions: () => served }
    return startWorker(parts, queue, 2, never, AbortSignal.timeout(20_000), [])
  }
  const workers = await Promise.all(alive.map(start))
  for (const name of ['north', 'south', 'south', 'north', 'south', 'north']) {
    const { id } = await create(name)
    await until('the agent to run', async () => (await call('GET', `/instances/${id}`)).body.status === 'running')
  }
  await Promise.all(workers.map((worker) => worker.stop()))
})

const places = [
  { region: 'north', hasUnnamed: true, sandboxDriver: 'fake' },
  { region: 'south', hasUnnamed: false, sandboxDriver: 'fake' },
  { region: 'north-2', hasUnnamed: false, sandboxDriver: 'fake' },
]

/** What a command of the operator prints. */
function admin(...args: string[]): Promise<string> {
  const unused = () => Promise.reject(new Error('not used'))
  const line = readCommandLine(args)
  if (typeof line === 'string') return Promise.resolve(line)
  const deps = {
    ...{ db: chowder.deps.db, defaultTier: 'whale' as const, regions: async () => places },
    ...{ isOneOrganization: unused, vault: unused, report: () => {}, ask: unused },
  }
  return administer(deps, line)
}

const takesNew = async () =>
  (await call('GET', '/regions')).body.flatMap((region: { name: string; takes_new_instances: boolean }) =>
    region.takes_new_instances ? [region.name] : [],
  )

/** Waits until the instances have a status. */
async function untilAll(ids: string[], status: string): Promise<void> {
  for (const id of ids) {
    await until(
      `an instance to be ${status}`,
      async () => (await call('GET', `/instances/${id}`)).body.status === status,
    )
  }
}

describe('the operator', () => {
  test('closes a region for new instances, and opens it again', async () => {
    const { id } = await create('south')
    expect(await admin('cordon', 'south')).toContain('cordoned: takes no new instances')
    expect(await takesNew()).toEqual(['north', 'north-2'])
    for (const body of [{ name: 'a', region: 'south' }, { name: 'a' }]) {
      const refused = await call('POST', '/instances', body)
      expect(refused).toMatchObject({ status: 409, body: { error: { code: 'region_closed', param: 'region' } } })
      expect(refused.body.detail).toContain('The region south takes no new instances right now.')
    }
    expect((await chowder.call('GET', '/v1/organization', { key })).body.instance_count).toBe(1)
    expect((await call('GET', `/instances/${id}`)).status).toBe(200)
    expect((await create('north')).region).toBe('north')
    await admin('uncordon', 'south')
    expect((await create()).region).toBe('south')
  })

  test('is told of a region that there is not', async () => {
    await expect(admin('drain', 'nroth')).rejects.toThrow('There is no region "nroth". Did you mean north?')
    expect(await admin('list-regions')).toMatch(/^REGION +DRIVER +RUNNING +STATE\nnorth +fake/)
  })

  test('drains a region: its agents are stopped, are not started there, and start again when it is opened', async () => {
    const worker = await chowder.startWorker()
    const [one, two, stopped] = (await Promise.all([create('south'), create('south'), create('south')])).map(
      ({ id }) => id,
    ) as [string, string, string]
    await untilAll([one, two, stopped], 'running')
    await call('POST', `/instances/${stopped}/stop`)
    const said = await admin('drain', 'south')
    expect(said).toContain('No agent runs in south any more.')
    expect(said).toMatch(/^\d+ instances are stopped\. They start again with: npm run/m)
    expect([...south.sandboxes.values()].filter(({ running }) => running)).toEqual([])
    expect((await call('GET', `/instances/${one}`)).body).toMatchObject({ status: 'stopped', stopped_for: 'drain' })
    const refused = await call('POST', `/instances/${one}/start`)
    expect(refused).toMatchObject({ status: 409, body: { error: { code: 'region_closed' } } })
    await admin('uncordon', 'south')
    await untilAll([one, two], 'running')
    expect((await call('GET', `/instances/${stopped}`)).body).toMatchObject({ status: 'stopped', stopped_for: null })
    const { body: events } = await call('GET', `/instances/${one}/events`)
    expect(events.map(({ reason }: { reason: string | null }) => reason)).toEqual(
      expect.arrayContaining(['The operator drains the region south.', 'The region south takes instances again.']),
    )
    await worker.stop()
  })
})
