import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, afterEach, expect, test, vi } from 'vitest'
import { instances } from '#database/schema.ts'
import { onlyRegion, type Region } from '#instances/regions.ts'
import { isFree } from '#instances/status.ts'
import { allShards, createShards, nameOf, type ShardRange } from '#lifecycle/queue/shards.ts'
import { createDriftDetection } from '#lifecycle/watch/drift.ts'
import { defaultIntervals, startWorker } from '#lifecycle/worker.ts'
import { newId } from '#platform/ids.ts'
import { SandboxUnavailableError } from '#sandbox/driver.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { startFakeGateway } from '../../support/fake-gateway.ts'
import { openTestChowder, type TestChowder } from '../../support/test-chowder.ts'
import { cloneDatabase } from '../../support/test-database.ts'
import { until } from '../../support/until.ts'

const within = () => AbortSignal.timeout(20_000)
const region = onlyRegion({ sandboxes: new FakeDriver() } as never).default() as Region

let chowder: TestChowder | undefined

const gateway = await startFakeGateway({})
const database = await cloneDatabase()
await database.pool.query('ALTER TABLE instances DISABLE TRIGGER USER')
afterAll(async () => {
  await database.drop()
  await gateway.close()
})
afterEach(async () => {
  await chowder?.close()
  chowder = undefined
  await database.pool.query('TRUNCATE instances, organizations, processes CASCADE')
})

/** The workers of these regions, as each knows of all. */
function workersOf(...regions: Region[]) {
  // Ids of the same millisecond have no order: they are sorted before each gets its region.
  const ids = regions.map(() => newId()).sort()
  const alive = ids.map((id, n) => ({ id, regions: [nameOf(regions[n] as Region)] }))
  return {
    alive,
    shards: alive.map(({ id }, n) =>
      createShards(
        database.db,
        id,
        () => alive,
        () => [regions[n] as Region],
      ),
    ),
  }
}
const west = { ...region, region: 'west' }

test('the workers of a region divide it, and those that are left take over from one that ends', () => {
  const { alive, shards } = workersOf(region, region, region)
  const ranges = () => shards.map(({ of }) => of(region))
  expect(ranges()).toEqual([0, 1, 2].map((index) => ({ index, count: 3 })))
  alive.shift()
  expect(ranges().slice(1)).toEqual([0, 1].map((index) => ({ index, count: 2 })))
  alive.shift()
  expect(ranges()[2]).toEqual({ index: 0, count: 1 })
})

test('a worker of another region takes no shards, but one of all workers is the first', () => {
  const { alive, shards } = workersOf(region, west)
  expect(shards.map(({ of }, n) => of(n === 0 ? region : west))).toEqual(Array(2).fill({ index: 0, count: 1 }))
  expect(shards.map(({ isFirst }) => isFirst())).toEqual([true, false])
  alive.shift()
  expect(shards[1]?.isFirst()).toBe(true)
})

test('the first of all workers does the work for the whole installation, and the next one after its end', async () => {
  chowder = await openTestChowder({ sandboxes: new FakeDriver(() => gateway.endpoint) })
  const { deps } = chowder
  const queue = { work: () => ({ stop: async () => {} }), enqueue() {} } as never
  const runs: string[] = []
  const alive: { id: string; regions: string[] }[] = []
  const start = (id: string) => {
    alive.push({ id, regions: ['x'] })
    const task = { name: 'the count', everyMs: 50, timeoutMs: 1000, run: async () => void runs.push(id) }
    const parts = { ...deps, processId: id, alive: () => alive, regions: () => [deps] }
    return startWorker(parts, queue, 1, defaultIntervals, within(), [task])
  }
  const [firstId, secondId] = [newId(), newId()].sort() as [string, string]
  const second = await start(secondId)
  await until('the only worker to do it', () => runs.filter((id) => id === secondId).length > 3)
  const first = await start(firstId)
  await until('the other one to leave it', async () => {
    runs.length = 0
    await sleep(500)
    return runs.length > 3 && !runs.includes(secondId)
  })
  alive.pop()
  await first.stop()
  await until('the next one to do it', () => runs.includes(secondId))
  await second.stop()
})

test('a worker that starts beside the first one does not compare what that compares', async () => {
  chowder = await openTestChowder({ sandboxes: new FakeDriver() })
  const { deps } = chowder
  const queue = { work: () => ({ stop: async () => {} }), enqueue() {} } as never
  const lists: string[] = []
  const alive: { id: string; regions: string[] }[] = []
  const start = (id: string) => {
    const list = async function* () {
      lists.push(id)
      yield* []
    }
    const region = { ...deps, sandboxes: Object.assign(new FakeDriver(), { list }) }
    alive.push({ id, regions: [nameOf(region)] })
    const parts = { ...deps, processId: id, alive: () => alive, regions: () => [region] }
    return startWorker(parts, queue, 1, defaultIntervals, within(), [])
  }
  const [firstId, secondId] = [newId(), newId()].sort() as [string, string]
  const first = await start(firstId)
  expect(lists).toContain(firstId)
  const second = await start(secondId)
  expect(lists).not.toContain(secondId)
  await Promise.all([first.stop(), second.stop()])
})

/** Running instances whose platform is away: a look at one changes nothing. */
async function insertRunning(count: number) {
  const { pool } = database
  const organization = randomUUID()
  await pool.query(`INSERT INTO organizations (id, name, subscription_tier) VALUES ($1, 'x', 'whale')`, [organization])
  const ids = Array.from({ length: count }, newId)
  await pool.query(
    `INSERT INTO instances (id, organization_id, name, model_provider, sandbox_driver, openclaw_version, desired_state,
                            sealed_token, ready_at, observed_generation, relay_token_hash)
     SELECT id, $2, 'x', 'anthropic', 'fake', '1', 'running', '', now(), 1, uuid_send(id) FROM unnest($1::uuid[]) id`,
    [ids, organization],
  )
  const looked: string[] = []
  let lists = 0
  const outage = new SandboxUnavailableError(new Error('away'), { isLogged: true })
  const sandboxes = {
    ...region.sandboxes,
    name: 'fake',
    async observe(id: string) {
      looked.push(id)
      throw outage
    },
    async *list() {
      lists += 1
      yield* ids.map((id) => ({ id, state: 'running' as const }))
    },
  }
  const unheard = { queue: { enqueue() {} }, log: { warn() {}, error() {} } }
  const drift = (range: ShardRange) =>
    createDriftDetection({ ...region, sandboxes, db: database.db, ...unheard } as never, () => range)
  return { ids, drift, looked, lists: () => lists }
}

test('each gateway is looked at by one worker, a page in each run, and the list of sandboxes is read by the first', async () => {
  const { ids, drift, looked, lists } = await insertRunning(600)
  const seen: string[] = []
  for (const index of [0, 1, 2]) {
    const { probeNext, tasks } = drift({ index, count: 3 })
    const comparison = tasks(5000).find(({ name }) => name === 'compare_sandboxes')
    await comparison?.run(within())
    const ofRange = new Set<string>()
    for (let before = -1; ofRange.size > before; ) {
      before = ofRange.size
      looked.length = 0
      await probeNext(within())
      expect(looked.length).toBeLessThanOrEqual(100)
      for (const id of looked) ofRange.add(id)
    }
    seen.push(...ofRange)
  }
  expect(seen.sort()).toEqual(ids.sort())
  expect(lists()).toBe(1)
})

test('the comparison at the start does not pause between the pages of many instances', async () => {
  const { drift, lists } = await insertRunning(2500)
  const startedAt = performance.now()
  await drift(allShards).detect(within())
  expect(lists()).toBe(1)
  expect(performance.now() - startedAt).toBeLessThan(7000)
})

test('the page after the last one is the first again', async () => {
  const { ids, drift, looked } = await insertRunning(150)
  const { probeNext } = drift(allShards)
  const counts: number[] = []
  for (let count = 0; count < 3; count += 1) {
    looked.length = 0
    await probeNext(within())
    counts.push(looked.length)
  }
  expect(counts).toEqual([100, ids.length - 100, 100])
})

test('a look passes over the rows of other regions and those of workers, and its next one goes on behind them', async () => {
  const { ids, drift, looked } = await insertRunning(700)
  const { pool } = database
  await pool.query(`UPDATE instances SET region = 'west' WHERE id = ANY ($1)`, [ids.filter((_, n) => n % 3 > 0)])
  await pool.query(`UPDATE instances SET lease_until = now() + interval '1 h' WHERE id = ANY ($1)`, [
    ids.filter((_, n) => n % 30 === 0),
  ])
  const toLookAt = ids.filter((_, n) => n % 3 === 0 && n % 30 > 0)
  const { probeNext } = drift(allShards)
  const counts: number[] = []
  const seen = new Set<string>()
  while (counts.length < 3) {
    looked.length = 0
    await probeNext(within())
    counts.push(looked.length)
    for (const id of looked) seen.add(id)
  }
  expect(counts).toEqual([100, 100, toLookAt.length - 200])
  expect([...seen].sort()).toEqual(toLookAt.sort())
})

test('a look ends before it has found a page of its own among very many rows of other regions, and goes on later', async () => {
  const { ids, drift, looked } = await insertRunning(2500)
  const { pool } = database
  const last = ids.sort((a, b) => (a.slice(-2) + a < b.slice(-2) + b ? -1 : 1)).at(-1)
  await pool.query(`UPDATE instances SET region = 'west' WHERE id <> $1`, [last])
  const { probeNext } = drift(allShards)
  const queries = vi.spyOn(pool, 'query')
  await probeNext(within())
  expect(queries.mock.calls.length).toBe(10)
  queries.mockRestore()
  expect(looked).toEqual([])
  for (let run = 0; run < 2; run += 1) await probeNext(within())
  expect(looked).toEqual([last])
})

test('a look at the next gateways reads as many pages of many instances as of few', async () => {
  const { drift } = await insertRunning(20_000)
  const { pool } = database
  await pool.query('VACUUM ANALYZE instances')
  const { probeNext } = drift(allShards)
  await probeNext(within())
  const queries = vi.spyOn(pool, 'query')
  await probeNext(within())
  const { calls } = queries.mock
  queries.mockRestore()
  const [[{ text }, values]] = calls as unknown as [[{ text: string }, unknown[]]]
  const { rows } = await pool.query(`EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) ${text}`, values)
  const plan = rows[0]['QUERY PLAN'][0].Plan
  expect(plan['Shared Hit Blocks'] + plan['Shared Read Blocks']).toBeLessThan(300)
})

test('a gateway that ends is repaired at once where its platform tells, however seldom a worker looks', async () => {
  const driver = new FakeDriver(() => gateway.endpoint)
  const seldom = { sweepEveryMs: 200, driftEveryMs: 600_000 }
  chowder = await openTestChowder({ sandboxes: driver, intervals: seldom })
  await chowder.startWorker()
  const { key } = await chowder.signUp()
  const { id } = (await chowder.call('POST', '/v1/instances', { key, body: { name: 'x' } })).body
  const read = async () => (await chowder?.call('GET', `/v1/instances/${id}`, { key }))?.body
  await until('the instance to run', async () => (await read()).status === 'running')
  await until('the work to end', async () => (await read()).step === null)
  // An end that comes before is seen at the next look, which is in ten minutes.
  await until('the lease to end', async () => (await chowder?.database.db.$count(instances, isFree)) === 1)
  const starts = driver.starts.get(id) ?? 0
  const diedAt = performance.now()
  driver.die(id)
  await until('the next start', () => driver.starts.get(id) === starts + 1)
  expect(performance.now() - diedAt).toBeLessThan(3000)
})
