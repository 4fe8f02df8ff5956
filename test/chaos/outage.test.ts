import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { providerKeyPlace } from '#instances/row.ts'
import { defaultIntervals } from '#lifecycle/worker.ts'
import { defaultRelease } from '#openclaw/releases.ts'
import type { SandboxSpec } from '#sandbox/driver.ts'
import { newSecret } from '../support/canary/secrets.ts'
import { FakeDriver } from '../support/fake-driver.ts'
import { type FakeGateway, startFakeGateway } from '../support/fake-gateway.ts'
import { present } from '../support/present.ts'
import { hasQueue, queueBackend, type queueKinds } from '../support/queue-backends.ts'
import { openTestChowder, type TestChowder } from '../support/test-chowder.ts'
import { until } from '../support/until.ts'
import { collectGarbage } from './footprint.ts'

/** The long ones show that the time and the memory of a row stay the same. */
const outages: { kind: (typeof queueKinds)[number]; dueRows: number; tags: string[] }[] = [
  { kind: 'postgres', dueRows: 500, tags: [] },
  { kind: 'postgres', dueRows: 5000, tags: ['long'] },
  { kind: 'redis', dueRows: 5000, tags: ['long'] },
]
const organizations = 20
const shareOfTheBigOne = 0.8
const concurrency = 8
/** With those that wait for something. */
const mostAtOnce = 2 * concurrency + 8
/**
 * From the worker's start until nothing is due. A row takes two idle cores about 20 ms; real agents that start beside
 * the test leave it a fifth of a core.
 */
const finishesByRowWithinMs = 60
const finishesWithinMsAtAll = 240_000
/** The greatest growth of the process while it works off all rows, in MiB. */
const growsByAtMost = 600
/** The greatest memory for each row afterwards, in KiB. Most of it is the fake sandbox with its files and its secrets. */
const keepsByRowAtMost = 12
/** And the greatest for all of them, in KiB: what the process has loaded meanwhile. */
const keepsAtMost = 8 * 1024
const sampleEveryMs = 250

/** A platform that counts how much is asked of it at once, and keeps nothing for a test to read. */
class CountingDriver extends FakeDriver {
  inFlight = 0
  most = 0
  changes = 0

  override onCall = () => {
    this.calls.length = 0
  }

  async #counted<T>(change: Promise<T>): Promise<T> {
    this.inFlight += 1
    this.changes += 1
    this.most = Math.max(this.most, this.inFlight)
    return change.finally(() => {
      this.inFlight -= 1
    })
  }

  override create(spec: SandboxSpec, signal: AbortSignal) {
    // As a platform would: without the functions, which hold on to all that the worker has at hand.
    return this.#counted(super.create({ ...spec, command: () => [], env: () => ({}) }, signal))
  }

  override start(id: string, signal: AbortSignal) {
    return this.#counted(super.start(id, signal))
  }

  override stop(id: string, options: { graceMs: number }, signal: AbortSignal) {
    return this.#counted(super.stop(id, options, signal))
  }

  override destroy(id: string, signal: AbortSignal) {
    return this.#counted(super.destroy(id, signal))
  }
}

let gateway: FakeGateway
let driver: CountingDriver
let chowder: TestChowder

/** Instances that were asked for an hour ago and later, while no worker ran. */
async function insertDue(organizationId: string, count: number): Promise<void> {
  const ids = Array.from({ length: count }, () => randomUUID())
  const sealed = ids.map((id) => chowder.vault.seal(randomUUID().replaceAll('-', ''), `instances/${id}/sealed_token`))
  await chowder.database.pool.query(
    `INSERT INTO instances (id, organization_id, name, model_provider, sandbox_driver, openclaw_version, desired_state,
                            sealed_token, created_at, next_attempt_at, lease_until)
     SELECT id, $1, 'x', 'anthropic', $4, $5, 'running', token, since, since, since
     FROM (SELECT id, token, now() - random() * interval '1 hour' AS since FROM unnest($2::uuid[], $3::text[]) AS t(id, token)) AS due`,
    [organizationId, ids, sealed, driver.name, defaultRelease],
  )
  await chowder.database.pool.query('UPDATE organizations SET instance_count = $2 WHERE id = $1', [
    organizationId,
    count,
  ])
}

const count = async (what: string): Promise<number> =>
  (await chowder.database.pool.query(`SELECT count(*)::int AS count FROM instances WHERE ${what}`)).rows[0].count

const mebibytes = () => process.memoryUsage.rss() / 2 ** 20

/** The memory in use, in KiB. */
function usedMemory(): number {
  collectGarbage()
  return process.memoryUsage().heapUsed / 2 ** 10
}

describe.each(outages)('an outage of an hour, with the queue in $kind', ({ kind, dueRows, tags }) => {
  const ofTheBigOne = shareOfTheBigOne * dueRows
  const finishesWithinMs = finishesWithinMsAtAll + finishesByRowWithinMs * dueRows

  beforeAll(async () => {
    gateway = await startFakeGateway({})
    driver = new CountingDriver(() => gateway.endpoint)
    chowder = await openTestChowder({
      sandboxes: driver,
      intervals: defaultIntervals,
      defaultTier: 'whale',
      queue: (database) => queueBackend(kind, database),
    })
    chowder.deps.log.level = 'warn' // its lines stay in this process's memory
  })
  afterAll(async () => {
    await chowder?.close()
    await gateway?.close()
  })

  test(`F27: ${dueRows} rows that became due during an outage are worked off in limited time with limited concurrency, and small organizations do not wait for a big one`, {
    timeout: finishesWithinMs + 60_000,
    tags,
  }, async ({ skip }) => {
    if (!hasQueue(kind)) skip('there is no Redis')
    const [big, ...small] = await Promise.all(Array.from({ length: organizations }, () => chowder.signUp()))
    await insertDue(present(big).id, ofTheBigOne)
    for (const [index, { id }] of small.entries()) {
      const left = dueRows - ofTheBigOne
      await insertDue(id, Math.floor(left / small.length) + (index < left % small.length ? 1 : 0))
    }
    expect(await count('observed_generation < generation')).toBe(dueRows)

    const usedBefore = usedMemory()
    const before = mebibytes()
    let most = before
    let mostHeld = 0
    const startedAt = performance.now()
    await chowder.startWorker(concurrency)
    for (let left = dueRows; left > 0; left = await count('observed_generation < generation')) {
      expect(performance.now() - startedAt, `${left} are left`).toBeLessThan(finishesWithinMs)
      most = Math.max(most, mebibytes())
      mostHeld = Math.max(mostHeld, await count('lease_until > now()'))
      await sleep(sampleEveryMs)
    }
    const seconds = (performance.now() - startedAt) / 1000
    const used = usedMemory() - usedBefore
    process.stderr.write(
      `F27, ${kind}: ${dueRows} rows in ${seconds.toFixed(1)} s, ${(most - before).toFixed(0)} MiB more at most, ${(used / dueRows).toFixed(1)} KiB in use for each row, ${driver.most} changes at once\n`,
    )

    expect(await count(`desired_state = 'running' AND ready_at IS NOT NULL AND attempts = 1`), 'all run').toBe(dueRows)
    expect(driver.sandboxes.size).toBe(dueRows)
    expect(
      [...driver.creations.values(), ...driver.starts.values()].every((times) => times === 1),
      'once',
    ).toBe(true)
    expect(driver.changes, 'no call of the platform was in vain').toBe(2 * dueRows)
    expect(mostHeld, 'rows held at once').toBeLessThanOrEqual(mostAtOnce)
    expect(mostHeld, 'and they were counted').toBeGreaterThan(1)
    expect(driver.most, 'calls of the platform at once').toBeLessThanOrEqual(mostAtOnce)
    expect(driver.most, 'and they were counted').toBeGreaterThan(1)
    expect(most - before, 'growth in MiB').toBeLessThan(growsByAtMost)
    expect(used, 'KiB that the rows have left behind').toBeLessThan(keepsAtMost + keepsByRowAtMost * dueRows)

    // The order in which they were done is that of their events.
    const { rows: ends } = await chowder.database.pool.query<{ organization_id: string; last: number }>(
      `SELECT organization_id, max(place)::int AS last
       FROM (SELECT organization_id, row_number() OVER (ORDER BY id) AS place FROM events WHERE type = 'instance.running') AS done
       GROUP BY organization_id`,
    )
    expect(ends).toHaveLength(organizations)
    const lastOfSmall = Math.max(
      ...ends.filter(({ organization_id: id }) => id !== present(big).id).map(({ last }) => last),
    )
    expect(lastOfSmall, 'the small ones are done long before the big one').toBeLessThan(0.5 * dueRows)

    // A new request does not wait.
    const { body } = await chowder.call('POST', '/v1/instances', { key: present(small[0]).key, body: { name: 'x' } })
    const isRunning = async () =>
      (await chowder.call('GET', `/v1/instances/${body.id}`, { key: present(small[0]).key })).body.status === 'running'
    await until('one that is asked for afterwards to run', isRunning, 10_000)
  })
})

describe('an outage of a large fleet', () => {
  const fleet = { rows: 100_000, organizations: 1000 }
  const looked = 3000

  beforeAll(async () => {
    gateway = await startFakeGateway({})
    driver = new CountingDriver(() => gateway.endpoint)
    chowder = await openTestChowder({ sandboxes: driver, intervals: defaultIntervals, defaultTier: 'whale' })
    chowder.deps.log.level = 'warn'
  })
  afterAll(async () => {
    await chowder?.close()
    await gateway?.close()
  })

  test('F27: of 100,000 due rows of 1,000 organizations the first are done as fast as few are, in turn', {
    timeout: 15 * 60_000,
    tags: ['long'],
  }, async () => {
    const { id: big } = await chowder.signUp()
    await insertDue(big, shareOfTheBigOne * fleet.rows)
    const others = fleet.organizations - 1
    const ids = Array.from({ length: others }, () => randomUUID())
    const key = newSecret('provider key', 'sk-')
    const keys = ids.map((id) => chowder.vault.seal(key, providerKeyPlace(id, 'anthropic')))
    await chowder.database.pool.query(
      `WITH added AS (
         SELECT id, sealed_key FROM unnest($1::uuid[], $2::text[]) AS t(id, sealed_key)
       ), inserted AS (
         INSERT INTO organizations (id, name, subscription_tier) SELECT id, 'x', 'whale' FROM added
       ) INSERT INTO provider_keys (organization_id, provider, sealed_key) SELECT id, 'anthropic', sealed_key FROM added`,
      [ids, keys],
    )
    const each = Math.floor(((1 - shareOfTheBigOne) * fleet.rows) / others)
    for (const id of ids) await insertDue(id, each)

    const startedAt = performance.now()
    await chowder.startWorker(concurrency)
    const settled = () => count('observed_generation = generation')
    await until(`${looked} to be done`, async () => (await settled()) >= looked, 10 * 60_000)
    const seconds = (performance.now() - startedAt) / 1000
    process.stderr.write(`F27: ${looked} of ${fleet.rows} rows in ${seconds.toFixed(1)} s\n`)
    expect(seconds * 1000).toBeLessThan(finishesWithinMsAtAll + finishesByRowWithinMs * looked)
    const { rows: done } = await chowder.database.pool.query<{ done: number }>(
      'SELECT count(*)::int AS done FROM instances WHERE observed_generation = generation GROUP BY organization_id',
    )
    expect(done, 'each organization has had its turns').toHaveLength(fleet.organizations)
    expect(Math.max(...done.map((row) => row.done)), 'and none has had many more').toBeLessThan(10)
  })
})
