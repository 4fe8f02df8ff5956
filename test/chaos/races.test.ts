import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { listEvents } from '#api/events/list.ts'
import type { Event } from '#database/schema.ts'
import { texts } from '#errors/texts.ts'
import { getInstance } from '#instances/row.ts'
import { publicStatus } from '#instances/status.ts'
import { FakeDriver } from '../support/fake-driver.ts'
import { type FakeGateway, startFakeGateway } from '../support/fake-gateway.ts'
import { present } from '../support/present.ts'
import { openTestChowder, type TestChowder } from '../support/test-chowder.ts'
import { cloneDatabase, type TestDatabase } from '../support/test-database.ts'
import { until } from '../support/until.ts'
import { type Answer, type Replica, signUp, startReplicas } from './api-replicas.ts'
import { randomFrom } from './random.ts'

const times = <T>(count: number, act: (index: number) => Promise<T>): Promise<T[]> =>
  Promise.all(Array.from({ length: count }, (_, index) => act(index)))

describe('two API replicas on one database', () => {
  let database: TestDatabase
  let started: Awaited<ReturnType<typeof startReplicas>>
  let replicas: Replica[]

  beforeAll(async () => {
    database = await cloneDatabase()
    started = await startReplicas(2, database.connection)
    replicas = started.replicas
  })
  afterAll(async () => {
    await started?.close()
    await database?.drop()
  })

  const replica = (index: number): Replica => present(replicas[index % replicas.length])
  const create = (index: number, key: string, name: string, headers: Record<string, string> = {}): Promise<Answer> =>
    replica(index).call('POST', '/v1/instances', { key, body: { name }, headers })

  const limit = 10
  const creates = 200

  async function createBeyondLimit(rounds: number): Promise<void> {
    const { id, key } = await signUp(replica(0))
    await database.pool.query('UPDATE organizations SET instance_limit = $2 WHERE id = $1', [id, limit])
    for (let round = 0; round < rounds; round += 1) {
      const answers = await times(creates, (index) => create(index, key, `agent ${index}`))
      const made = answers.filter(({ status }) => status === 201)
      const refused = answers.filter(({ status }) => status === 402)
      expect([made.length, refused.length], `round ${round}`).toEqual([limit, creates - limit])
      const details = [...new Set(refused.map(({ body }) => body.detail))]
      expect(details).toEqual([`${texts.instanceLimit(limit, limit)} ${texts.limitWithoutBilling(id)}`])
      const { rows } = await database.pool.query(
        `SELECT instance_count, (SELECT array_agg(id ORDER BY id) FROM instances WHERE organization_id = $1) AS ids
         FROM organizations WHERE id = $1`,
        [id],
      )
      expect(rows).toEqual([{ instance_count: limit, ids: made.map(({ body }) => body.id).sort() }])
      await database.pool.query('DELETE FROM instances WHERE organization_id = $1', [id])
      await database.pool.query('UPDATE organizations SET instance_count = 0 WHERE id = $1', [id])
    }
  }

  const limited = 'F11: of 200 creates at once under a limit of 10 exactly 10 succeed'
  test(`${limited}, ten times over`, () => createBeyondLimit(10))
  test(`${limited}, a hundred times over`, { tags: ['long'] }, () => createBeyondLimit(100))

  test('F12: of 100 concurrent posts with one Idempotency-Key, one creates, another body answers 422, and another organization is independent', async () => {
    const [own, other] = [await signUp(replica(0)), await signUp(replica(1))]
    const instancesOf = async ({ id }: { id: string }) =>
      (await database.pool.query('SELECT id FROM instances WHERE organization_id = $1', [id])).rows
    for (let round = 1; round <= 10; round += 1) {
      const headers = { 'idempotency-key': `round-${round}` }
      const [duplicates, differing, others] = await Promise.all([
        times(100, (index) => create(index, own.key, 'one', headers)),
        times(20, (index) => create(index, own.key, 'another', headers)),
        times(20, (index) => create(index, other.key, 'another', headers)),
      ])
      // Whichever body came first has the key.
      const [winners, losers] =
        present(duplicates[0]).status === 201 ? [duplicates, differing] : [differing, duplicates]
      expect(new Set(winners.map(({ status }) => status))).toEqual(new Set([201]))
      expect(new Set(winners.map(({ body }) => body.id)).size, 'one instance').toBe(1)
      expect(winners.filter(({ headers }) => headers['idempotent-replayed'] !== 'true')).toHaveLength(1)
      expect(new Set(losers.map(({ status }) => status))).toEqual(new Set([422]))
      expect(new Set(others.map(({ status, body }) => `${status} ${body.name}`))).toEqual(new Set(['201 another']))
      expect(new Set(others.map(({ body }) => body.id)).size, 'and one of the other organization').toBe(1)
      expect(present(others[0]).body.id).not.toBe(present(winners[0]).body.id)
      expect([(await instancesOf(own)).length, (await instancesOf(other)).length]).toEqual([round, round])
    }
  })
})

describe('one instance', () => {
  const concurrency = 64
  const settlesWithinMs = 30_000

  let chowder: TestChowder
  let organization: { id: string; key: string }
  /** One an instance that is under test: a gateway's configuration is its own. */
  const gateways: FakeGateway[] = []
  const gatewayOf = new Map<string, FakeGateway>()
  const driver = new FakeDriver((id) => gatewayOf.get(id)?.endpoint ?? { kind: 'tcp', host: '127.0.0.1', port: 9 })

  beforeAll(async () => {
    driver.onCall = () => sleep(Math.random() * 10)
    chowder = await openTestChowder({ sandboxes: driver, intervals: { sweepEveryMs: 500, driftEveryMs: 2000 } })
    organization = await chowder.signUp()
    await chowder.database.pool.query('UPDATE organizations SET instance_limit = NULL')
    gateways.push(...(await times(concurrency, () => startFakeGateway({}))))
    await chowder.startWorker(concurrency)
  })
  afterAll(async () => {
    await chowder?.close()
    await Promise.all(gateways.map((gateway) => gateway.close()))
  })

  /** How often each call was answered with each status. */
  const outcomes = new Map<string, number>()

  const intents: Record<string, string> = {
    'instance.create': 'running',
    'instance.start': 'running',
    'instance.stop': 'stopped',
    'instance.delete': 'terminated',
  }

  interface Fired {
    what: 'start' | 'stop' | 'label' | 'configure' | 'delete'
    requestId: string
    calledAt: number
    answeredAt: number
    status: number
    detail: string
    /** The last event that was there before the call, and after the answer. */
    lastBefore: number
    lastAfter: number
  }

  const eventsOf = async (id: string): Promise<Event[]> =>
    (await listEvents(chowder.database.db, { organizationId: organization.id, instanceId: id, order: 'asc', limit: 1000 })).rows // biome-ignore format: short

  const lastEvent = async (id: string): Promise<number> =>
    Number((await chowder.database.pool.query('SELECT max(id) AS id FROM events WHERE instance_id = $1', [id])).rows[0].id) // biome-ignore format: short

  async function fire(id: string, what: Fired['what'], requestId: string): Promise<Fired> {
    const options = { key: organization.key, headers: { 'x-request-id': requestId } }
    const url = `/v1/instances/${id}`
    const lastBefore = await lastEvent(id)
    const calledAt = performance.now()
    const { status, body } = await (what === 'delete'
      ? chowder.call('DELETE', url, options)
      : what === 'label'
        ? chowder.call('PATCH', url, { ...options, body: { name: requestId } })
        : what === 'configure'
          ? chowder.call('PATCH', url, { ...options, body: { openclaw_config: { messages: { responsePrefix: requestId } } } }) // biome-ignore format: short
          : chowder.call('POST', `${url}/${what}`, options))
    const answeredAt = performance.now()
    return { what, requestId, calledAt, answeredAt, status, detail: body?.detail ?? '', lastBefore, lastAfter: await lastEvent(id) } // biome-ignore format: short
  }

  const typeOf = {
    start: 'instance.start',
    stop: 'instance.stop',
    label: 'instance.update',
    configure: 'instance.update',
    delete: 'instance.delete',
  } as const

  /**
   * Every 409 names a status that the instance had between the call and its answer, or comes after 10 s of waiting for
   * the others.
   */
  function checkRefusal({ what, detail, lastBefore, lastAfter, calledAt, answeredAt }: Fired, events: Event[]): void {
    if (what === 'configure' && detail === texts.isBusy)
      return void expect(answeredAt - calledAt).toBeGreaterThan(9_900)
    const held = events
      .filter(({ id }, index) => id <= lastAfter && (id > lastBefore || events[index + 1] === undefined || present(events[index + 1]).id > lastBefore)) // biome-ignore format: short
      .map(({ toStatus }) => toStatus)
    const named = detail === texts.isTerminated ? 'terminated' : /An instance that is (\w+) cannot be/.exec(detail)?.[1]
    expect(held, `${what} was refused with: ${detail}`).toContain(named)
  }

  /** Every change that was accepted is in the history once, in an order that the answers allow. */
  function checkHistory(fired: Fired[], events: Event[]): void {
    for (const [index, event] of events.entries()) {
      expect(event.fromStatus, 'the events are a chain').toBe(events[index - 1]?.toStatus ?? null)
    }
    const recorded = fired.map((call) => ({
      ...call,
      events: events.filter(({ requestId, type }) => requestId === call.requestId && type === typeOf[call.what]),
    }))
    const deletions = recorded.filter(({ what }) => what === 'delete')
    if (deletions.length > 0) expect(deletions.flatMap((call) => call.events)).toHaveLength(1)
    for (const call of recorded) {
      if (call.status >= 300) expect(call.events, 'what was refused is not in it').toEqual([])
      else if (call.what !== 'delete') expect(call.events, `${call.what} is in it once`).toHaveLength(1)
    }
    const accepted = recorded.flatMap((call) => call.events.map((event) => ({ ...call, place: event.id })))
    for (const earlier of accepted) {
      for (const later of accepted) {
        if (earlier.answeredAt < later.calledAt && earlier.what !== 'configure') {
          expect(later.place, `${earlier.what} was answered before ${later.what} was asked`).toBeGreaterThan(
            earlier.place,
          )
        }
      }
    }
  }

  async function liveThrough(seed: number, gateway: FakeGateway): Promise<void> {
    const random = randomFrom(seed)
    const { db, pool } = chowder.database
    const { key } = organization
    gateway.config = {}
    const { body } = await chowder.call('POST', '/v1/instances', { key, body: { name: `seed ${seed}` } })
    const id: string = body.id
    gatewayOf.set(id, gateway)
    const read = () => getInstance(db, organization.id, id)
    if (random.next() < 0.7)
      await until('it to run', async () => publicStatus(await read()) === 'running', settlesWithinMs)

    const choices = ['start', 'start', 'stop', 'stop', 'label', 'configure', 'configure'] as const
    const plan: { what: Fired['what']; afterMs: number }[] = Array.from({ length: random.between(3, 7) }, () => ({
      what: random.pick(choices),
      afterMs: random.next() * 150,
    }))
    if (random.next() < 0.5) plan.push({ what: 'delete', afterMs: random.next() * 150 })
    if (random.next() < 0.2) plan.push({ what: 'delete', afterMs: random.next() * 150 })
    const fired = await times(plan.length, async (index) => {
      const { what, afterMs } = present(plan[index])
      await sleep(afterMs)
      return fire(id, what, `${seed}.${index}`)
    })

    const row = await until(
      'it to settle',
      async () => {
        const latest = await read()
        return latest.observedGeneration === latest.generation ? latest : null
      },
      settlesWithinMs,
    )
    const events = await eventsOf(id)
    for (const call of fired) {
      outcomes.set(`${call.what} ${call.status}`, (outcomes.get(`${call.what} ${call.status}`) ?? 0) + 1)
      expect([200, 202, 204, 409], `${call.what}: ${call.detail}`).toContain(call.status)
      if (call.status === 409) checkRefusal(call, events)
    }
    checkHistory(fired, events)
    const last = events.findLast(({ type }) => type in intents)
    const wanted = intents[last?.type ?? '']
    const sandbox = driver.sandboxes.get(id)
    expect([publicStatus(row), sandbox?.running ?? null], 'the last accepted intent wins').toEqual([
      wanted,
      { running: true, stopped: false, terminated: null }[wanted as string],
    ])
    expect(driver.creations.get(id) ?? 0, 'one sandbox at most').toBeLessThanOrEqual(1)

    // Settled rows would be checked for drift repeatedly.
    await pool.query('DELETE FROM instances WHERE id = $1', [id])
    driver.sandboxes.delete(id)
    gatewayOf.delete(id)
  }

  async function liveThroughSeeds(count: number): Promise<void> {
    const first = Number(process.env.SEED ?? Math.floor(Math.random() * 1e9))
    const toRun = Array.from({ length: process.env.SEED ? 1 : count }, (_, index) => first + index).values()
    await Promise.all(
      gateways.map(async (gateway) => {
        for (const seed of toRun) {
          await liveThrough(seed, gateway).catch((error: unknown) => {
            throw new Error(`SEED=${seed} repeats this failure: ${error instanceof Error ? error.message : error}`, { cause: error }) // biome-ignore format: short
          })
        }
      }),
    )
    console.info(Object.fromEntries([...outcomes].sort()))
  }

  const raced =
    'start, stop, patch and delete fired together: the last accepted intent wins, and every 409 names a status that held'
  test(`F13: ${raced}, with 50 seeds`, () => liveThroughSeeds(50))
  test(`F13: ${raced}, with 1,000 seeds`, { tags: ['long'] }, () => liveThroughSeeds(1000))
})
