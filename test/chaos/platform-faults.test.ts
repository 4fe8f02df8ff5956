import { type ChildProcess, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { chmod, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { examine } from '#commands/doctor/examine.ts'
import { maxAttempts } from '#lifecycle/attempt/failures.ts'
import { plans } from '#lifecycle/attempt/plans.ts'
import type { Observation } from '#sandbox/driver.ts'
import { loadConfig } from '#settings/config.ts'
import { api, signUp, waitForStatus } from '../support/api-client.ts'
import { newSecret } from '../support/canary/secrets.ts'
import { openCloudDriver } from '../support/cloud-driver.ts'
import { compiledOnce } from '../support/compile-cache.ts'
import { type CloudCall, type CloudEvent, type CloudFault, startFakeCloud } from '../support/fake-cloud.ts'
import { FakeDriver } from '../support/fake-driver.ts'
import { type FakeGateway, startFakeGateway } from '../support/fake-gateway.ts'
import { present } from '../support/present.ts'
import { openTestChowder, type TestChowder } from '../support/test-chowder.ts'
import { cloneDatabase } from '../support/test-database.ts'
import { until } from '../support/until.ts'
import { databaseUrl } from './api-replicas.ts'
import { findDoubled, findIllegalTransitions } from './checker.ts'

/** Longer than it takes until a gateway that starts is looked at first, so that its output is read too. */
const bootMs = 1500
const comesTrueWithinMs = 240_000
/** The message for owners. The platform's own message may name resources of others. */
const seeTheLog = "The step createSandbox failed. The reason is in Chowder's log."
const unavailable = 'The platform that runs the sandboxes is not available right now. Try again.'
const noRoom = 'The platform has no room for another sandbox.'

/** Has every pause noted in the statement that begins it. */
const notePauses = `
  CREATE TABLE pauses (id uuid, attempts int, seconds float8);
  CREATE FUNCTION note_pause() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO pauses VALUES (NEW.id, NEW.attempts, extract(epoch FROM NEW.next_attempt_at - now()));
    RETURN NEW;
  END $$;
  CREATE TRIGGER note_pause BEFORE UPDATE ON instances FOR EACH ROW
  WHEN (NEW.next_attempt_at > now() AND NEW.next_attempt_at <> OLD.next_attempt_at) EXECUTE FUNCTION note_pause()`

/** The parts of this file at the same time, each test of one after the other. */
const inTurn = { concurrent: false }

/** A Chowder in this process with one owner, for one part of the tests. */
async function openFixture(sandboxes: TestChowder['deps']['sandboxes'], { concurrency = 8, driftEveryMs = 500 } = {}) {
  const chowder = await openTestChowder({
    sandboxes,
    defaultTier: 'whale',
    intervals: { sweepEveryMs: 50, driftEveryMs },
    timeouts: { startWithoutProgressMs: 30_000, startMs: 60_000 },
  })
  const { key } = await chowder.signUp()
  const { pool } = chowder.database
  await pool.query(notePauses)
  const call = (method: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE', path: string, body?: unknown) =>
    chowder.call(method, `/v1/instances${path}`, { key, ...(body !== undefined && { body }) })
  const fixture = {
    chowder,
    pool,
    call,
    create: async (): Promise<string> => (await call('POST', '', { name: 'x' })).body.id,
    shown: async (id: string) => (await call('GET', `/${id}`)).body,
    rowOf: async (id: string) => (await pool.query('SELECT * FROM instances WHERE id = $1', [id])).rows[0],
    /** As if the pauses between attempts had passed, for those that have failed less often. */
    hurry: (failures = 1000) =>
      pool.query(
        'UPDATE instances SET next_attempt_at = now() WHERE next_attempt_at > now() AND lease_until < now() AND attempts < $1',
        [failures],
      ),
    /** Waits, without the pauses, until all of them are at rest with this status. */
    allAre: (ids: readonly string[], status: string) =>
      until(
        `${ids.length} instances to be ${status}`,
        async () => {
          await fixture.hurry()
          const all = await Promise.all(ids.map((id) => fixture.shown(id)))
          return all.every((body) => body.status === status && body.step === null)
        },
        comesTrueWithinMs,
      ),
    /** How long each pause after a failed attempt of an instance was to be, in s, from the first on. */
    pausesOf: async (id: string): Promise<number[]> =>
      (await pool.query('SELECT seconds FROM pauses WHERE id = $1 ORDER BY attempts', [id])).rows.map(
        ({ seconds }) => seconds,
      ),
  }
  await chowder.startWorker(concurrency)
  return fixture
}

type Fixture = Awaited<ReturnType<typeof openFixture>>

/** Between half of what is doubled each time and all of it, up to the longest. */
function expectPauses(pauses: readonly number[], longest: number): void {
  for (const [index, pause] of pauses.entries()) {
    const full = Math.min(2 ** index, longest)
    expect(pause, `pause ${index + 1}`).toBeGreaterThanOrEqual(full / 2)
    expect(pause, `pause ${index + 1}`).toBeLessThanOrEqual(full)
  }
}

/** A fixture whose platform is a fake cloud, with the cloud's history. */
async function openCloudFixture(options: { driftEveryMs?: number } = {}) {
  const cloud = await startFakeCloud({ bootMs })
  const platform = openCloudDriver(cloud.url, 'the test')
  const absent: Observation = { state: 'absent', sandboxId: null, endpoint: null, paths: null }
  /** How often each was looked at since lies are told, in the order of their first looks; null while none is. */
  let looks: Map<string, number> | null = null
  const isNextALie = (id: string): boolean => {
    if (!looks) return false
    looks.set(id, (looks.get(id) ?? 0) + 1)
    return looks.get(id) === 1 + [...looks.keys()].indexOf(id)
  }
  const fixture = await openFixture(
    { ...platform, observe: async (id, signal) => (isNextALie(id) ? absent : platform.observe(id, signal)) },
    options,
  )
  return {
    ...fixture,
    cloud,
    happened: (id: string, what: CloudEvent['what']) =>
      cloud.history.filter((event) => event.id === id && event.what === what).length,
    /** Has each of these kinds of calls fail once, does something, and answers once all the faults have struck. */
    async struckOn(kind: CloudFault['kind'], calls: readonly CloudCall[], act: () => Promise<unknown>) {
      const before = cloud.struck.get(kind) ?? 0
      for (const call of calls) cloud.fail({ kind, calls: [call] })
      await act()
      const haveStruck = () => cloud.struck.get(kind) === before + calls.length
      await until(`every fault to have struck ${calls}`, haveStruck, comesTrueWithinMs)
    },
    /**
     * Has the platform say once of each instance that its sandbox is absent: of the first at its first look, of the
     * second at its second, and so on, until all of them run. Returns how often that was said.
     */
    async lieWhile(start: () => Promise<string[]>): Promise<{ ids: string[]; told: number }> {
      looks = new Map()
      const ids = await start()
      await fixture.allAre(ids, 'running')
      const told = [...looks.values()].filter((count, index) => count > index).length
      looks = null
      return { ids, told }
    },
    async close() {
      await fixture.chowder.close()
      await cloud.close()
    },
  }
}

/** A start looks at its sandbox at least so often, most of the times while its gateway gets ready. */
const leastLooks = 8

type CloudFixture = Awaited<ReturnType<typeof openCloudFixture>>

/** Whole lives of a few instances, with each kind of call failing once in this way. */
async function liveThrough(kind: CloudFault['kind'], { cloud, happened, struckOn, ...fixture }: CloudFixture) {
  const ids = await Promise.all(Array.from({ length: 5 }, fixture.create))
  await struckOn(kind, ['observe', 'create', 'files', 'start', 'logs'], () => fixture.allAre(ids, 'running'))
  const ask = async (action: 'start' | 'stop', status: string) => {
    const answers = Promise.all(ids.map((id) => fixture.call('POST', `/${id}/${action}`)))
    await fixture.allAre(ids, status)
    for (const { status, body } of await answers) expect(status, JSON.stringify(body)).toBe(200)
  }
  await struckOn(kind, ['stop', 'list'], () => ask('stop', 'stopped'))
  // A stop that got a wrong answer about a missing sandbox is corrected.
  await until('nothing to run', () => !cloud.sandboxes().some(({ id, isRunning }) => isRunning && ids.includes(id)))
  await fixture.allAre(ids, 'stopped')
  await struckOn(kind, ['observe', 'start'], () => ask('start', 'running'))
  for (const id of ids) {
    const counts = [happened(id, 'created'), happened(id, 'destroyed'), happened(id, 'started')]
    expect(counts, 'one sandbox all the time, started as often as it was asked for').toEqual([1, 0, 2])
  }
  await struckOn(kind, ['destroy', 'list'], () => Promise.all(ids.map((id) => fixture.call('DELETE', `/${id}`))))
  const areGone = async () => {
    await fixture.hurry()
    return !cloud.sandboxes().some(({ id }) => ids.includes(id))
  }
  await until('all to be destroyed', areGone, comesTrueWithinMs)
  await fixture.allAre(ids, 'terminated')
  expect(await findDoubled(fixture.pool, cloud.history, cloud.overlaps)).toEqual([])
  expect(await findIllegalTransitions(fixture.pool)).toEqual([])
}

const answered = ['lost reply', 'too many requests', 'server error', 'wrong 404', 'out of capacity'] as const

describe.concurrent('a platform that fails', () => {
  let fixture: CloudFixture

  beforeAll(async () => {
    fixture = await openCloudFixture()
  })
  afterAll(() => fixture?.close())

  test.each(answered)(
    'F9: %s on each kind of call: no sandbox is duplicated or created again, and all intents are carried out',
    inTurn,
    (kind) => liveThrough(kind, fixture),
  )

  const failsForLong = 'F9: %s for long: pauses that grow by chance, an end with a reason, and another chance'
  const failForLong = async (kind: CloudFault['kind']) => {
    const message = { 'out of capacity': noRoom, 'wrong 404': seeTheLog }[kind as string] ?? unavailable
    const { cloud, happened } = fixture
    cloud.fail({ kind, calls: ['create'], times: Number.POSITIVE_INFINITY })
    const ids = await Promise.all(Array.from({ length: 4 }, fixture.create))
    await fixture.allAre(ids, 'error')
    const pauses = await Promise.all(ids.map(fixture.pausesOf))
    for (const each of pauses) {
      expect(each, 'a pause after each attempt but the last').toHaveLength(maxAttempts - 1)
      expectPauses(each, 60)
    }
    const shares = pauses.flatMap((each) => each.map((pause, index) => (pause / 2 ** index).toFixed(3)))
    expect(new Set(shares).size, 'chance is in the pauses').toBeGreaterThan(shares.length / 2)
    for (const id of ids) {
      expect(await fixture.shown(id)).toMatchObject({ status: 'error', error_message: message })
      const { body } = await fixture.call('GET', `/${id}/events?limit=100`)
      const reasons = body.map(({ type, reason }: { type: string; reason: string }) => [type, reason])
      expect(reasons).toContainEqual(['instance.attempt_failed', message])
      expect(reasons).toContainEqual(['instance.failed', message])
    }
    cloud.heal()
    await Promise.all(
      ids.map(async (id) => expect((await fixture.call('POST', `/${id}/start`)).body.status).toBe('running')),
    )
    for (const id of ids) expect(happened(id, 'created'), 'one sandbox').toBe(1)
    await Promise.all(ids.map((id) => fixture.call('DELETE', `/${id}`)))
    await fixture.allAre(ids, 'terminated')
  }
  // One fault for each message; the others have the message of the first.
  test.each(answered.slice(2))(failsForLong, inTurn, failForLong)
  test.each(answered.slice(0, 2))(failsForLong, { ...inTurn, tags: ['long'] }, failForLong)

  test(
    'F9: a wrong 404 at any observation of a start: no sandbox is created again, started without its configuration or given up',
    inTurn,
    async () => {
      const { happened } = fixture
      const count = 12
      const ids: string[] = []
      let told = 0
      // A busy machine looks less often while its gateways get ready.
      for (let round = 0; round < 3 && told < leastLooks; round += 1) {
        const lied = await fixture.lieWhile(() => Promise.all(Array.from({ length: count }, fixture.create)))
        told = lied.told
        ids.push(...lied.ids)
      }
      expect(told).toBeGreaterThanOrEqual(leastLooks)
      for (const id of ids) {
        const events = (await fixture.call('GET', `/${id}/events?limit=100`)).body
        expect(events.map(({ type }: { type: string }) => type)).not.toContain('instance.failed')
        expect((['created', 'started', 'died', 'stopped'] as const).map((what) => happened(id, what))).toEqual([
          1, 1, 0, 0,
        ])
        expect((await fixture.rowOf(id)).endpoint).not.toBe(null)
      }
      await Promise.all(ids.map((id) => fixture.call('DELETE', `/${id}`)))
      await fixture.allAre(ids, 'terminated')
    },
  )

  test(
    'F10: a delete that fails 100 times: pauses of at most 10 min, an alarm from the 10th on, never given up, and found by the doctor',
    inTurn,
    async () => {
      const { cloud } = fixture
      const id = await fixture.create()
      await fixture.allAre([id], 'running')
      const before = cloud.struck.get('server error') ?? 0
      cloud.fail({ kind: 'server error', calls: ['destroy'], times: 100 })
      expect((await fixture.call('DELETE', `/${id}`)).status).toBe(204)
      await until(
        'it to have failed 100 times',
        async () => {
          await fixture.hurry(100)
          return (await fixture.pausesOf(id)).length === 100
        },
        comesTrueWithinMs,
      )
      const pauses = await fixture.pausesOf(id)
      expectPauses(pauses, 600)
      expect(cloud.struck.get('server error')).toBe(before + 100)
      expect(await fixture.shown(id)).toMatchObject({ status: 'terminated', step: 'destroySandbox' })
      const { body: events } = await fixture.call('GET', `/${id}/events?limit=1`)
      expect(events).toMatchObject([{ type: 'instance.attempt_failed', reason: unavailable }])
      expect(await fixture.rowOf(id)).toMatchObject({ attempts: 100, observed_generation: 1, generation: 2 })
      const levels = fixture.chowder.logged
        .map((line) => JSON.parse(line))
        .filter((line) => line.instanceId === id && line.msg === 'step failed')
        .map(({ attempts, level }) => [attempts, level])
      expect(levels).toEqual(Array.from({ length: 100 }, (_, index) => [index + 1, index + 1 < 10 ? 40 : 50]))

      // The platform is well again, and the next attempt minutes away.
      const { chowder } = fixture
      const { db } = chowder.deps
      const deps = { config: loadConfig({}), db, regions: [chowder.deps], vault: chowder.vault, queue: chowder.queue }
      expect(await examine(deps)).toMatchObject([
        { area: 'instances', what: expect.stringContaining(`The delete of the instance ${id} has failed`) },
      ])
      await until(
        'it to be deleted',
        async () => {
          await fixture.hurry(101)
          return (await fixture.shown(id)).step === null
        },
        comesTrueWithinMs,
      )
      expect(await examine(deps)).toEqual([])
      expect(cloud.sandboxes().filter((sandbox) => sandbox.id === id)).toEqual([])
      expect(await fixture.shown(id)).toMatchObject({ status: 'terminated', step: null })
    },
  )
})

describe('a platform that fails during a request', () => {
  let fixture: CloudFixture

  beforeAll(async () => {
    // A frequent drift check would consume the fault that is meant for the request.
    fixture = await openCloudFixture({ driftEveryMs: 600_000 })
  })
  afterAll(() => fixture?.close())

  test.each([
    ['lost reply', 503],
    ['too many requests', 503],
    ['server error', 503],
    ['wrong 404', 502],
    ['out of capacity', 507],
  ] as const)(
    'F9: %s during a request: %i, no change is stored, and the next request succeeds',
    async (kind, status) => {
      const { cloud, call } = fixture
      const id = await fixture.create()
      const prompted = (system_prompt: string) => ({ openclaw_config: { agent: { system_prompt } } })
      const soul = async () => (await call('GET', `/${id}/files/content?path=SOUL.md`)).body.content
      await fixture.allAre([id], 'running')
      expect((await call('PATCH', `/${id}`, prompted('Be brief.'))).status).toBe(200)
      const requests = [
        ['observe', () => call('PATCH', `/${id}`, prompted('Shout.'))],
        ['files', () => call('PATCH', `/${id}`, prompted('Shout.'))],
        ['files', () => call('GET', `/${id}/files`)],
        ['files', () => call('PUT', `/${id}/files/content`, { path: 'a.txt', content: 'a' })],
      ] as const
      for (const [struck, request] of requests) {
        cloud.fail({ kind, calls: [struck] })
        const answer = await request()
        expect([answer.status, answer.headers['retry-after']], JSON.stringify(answer.body)).toEqual([
          status,
          status === 503 ? '5' : undefined,
        ])
        await fixture.allAre([id], 'running')
        expect((await fixture.shown(id)).openclaw_config).toEqual(prompted('Be brief.').openclaw_config)
        expect(await soul()).toBe('Be brief.')
        expect((await request()).status).toBeOneOf([200, 201, 202, 204])
        expect((await call('PATCH', `/${id}`, prompted('Be brief.'))).status).toBe(200)
      }
      await call('DELETE', `/${id}`)
      await fixture.allAre([id], 'terminated')
    },
  )
})

describe.concurrent('a platform that does not answer', () => {
  let fixture: CloudFixture

  beforeAll(async () => {
    fixture = await openCloudFixture()
  })
  afterAll(() => fixture?.close())

  test(
    'F9: hang on each kind of call: no sandbox is duplicated or created again, and all intents are carried out',
    { ...inTurn, tags: ['long'] },
    () => liveThrough('hang', fixture),
  )

  test(
    'F9: a look at a gateway that fails, however it does, is no look: a hung one is restarted once',
    inTurn,
    async () => {
      const { cloud, happened } = fixture
      const kinds = [...answered, 'hang'] as const
      const ids = await Promise.all(kinds.map(fixture.create))
      await fixture.allAre(ids, 'running')
      for (const kind of kinds) cloud.fail({ kind, calls: ['activity'] })
      const before = kinds.map((kind) => cloud.struck.get(kind) ?? 0)
      for (const id of ids) cloud.hang(id)
      const areBack = async () => {
        await fixture.hurry()
        return ids.every((id) => cloud.sandboxes().some((seen) => seen.id === id && seen.isHealthy))
      }
      await until('all to be back', areBack, comesTrueWithinMs)
      await fixture.allAre(ids, 'running')
      expect(kinds.map((kind) => cloud.struck.get(kind))).toEqual(before.map((times) => times + 1))
      for (const id of ids) {
        const counts = [happened(id, 'created'), happened(id, 'destroyed'), happened(id, 'started')]
        expect(counts, 'one sandbox all the time').toEqual([1, 0, 2])
      }
    },
  )
})

describe.concurrent('a worker with a poison instance', () => {
  const concurrency = 2
  let gateway: FakeGateway
  let driver: FakeDriver
  let fixture: Fixture

  beforeAll(async () => {
    gateway = await startFakeGateway({})
    driver = new FakeDriver(() => gateway.endpoint)
    fixture = await openFixture(driver, { concurrency })
  })
  afterAll(async () => {
    await fixture?.chowder.close()
    await gateway?.close()
  })

  test(
    'F28: works on the other instances: they run, and the poison instance is an error after its attempts',
    inTurn,
    async () => {
      const poison: { id?: string } = {}
      driver.onCall = (method, id) => {
        if (method !== 'create') return
        poison.id ??= id
        if (id === poison.id) throw new TypeError("Cannot read properties of undefined (reading 'x')")
      }
      const first = await fixture.create()
      await until('it to be at work', () => poison.id === first, comesTrueWithinMs)
      const others = await Promise.all(Array.from({ length: 20 }, fixture.create))
      await until(
        'the others to run',
        async () =>
          (await Promise.all(others.map((id) => fixture.shown(id)))).every(({ status }) => status === 'running'),
        comesTrueWithinMs,
      )
      await fixture.allAre([first], 'error')
      expect(await fixture.shown(first)).toMatchObject({
        error_message: seeTheLog,
      })
      expect(driver.calls.filter(({ method, id }) => method === 'create' && id === first)).toHaveLength(maxAttempts)
      driver.onCall = () => {}
    },
  )

  test('F28: leaves a step behind that hangs and does not listen, and what that does later is harmless', {
    ...inTurn,
    tags: ['long'],
  }, async () => {
    const { limitMs } = present(plans.running.find(({ step }) => step.name === 'createSandbox'))
    const { promise: hanging, resolve: goOn } = Promise.withResolvers<void>()
    const hung: { id?: string } = {}
    driver.onCall = (method, id) => {
      if (method !== 'create' || hung.id !== undefined) return undefined
      hung.id = id
      return hanging
    }
    const id = await fixture.create()
    await until('it to hang', () => hung.id === id, comesTrueWithinMs)
    const startedAt = performance.now()
    const others = await Promise.all(Array.from({ length: 10 }, fixture.create))
    await fixture.allAre(others, 'running')
    await until('it to be left behind', async () => (await fixture.rowOf(id)).error_message, limitMs + 20_000)
    expect(performance.now() - startedAt).toBeGreaterThan(limitMs)
    expect((await fixture.rowOf(id)).error_message).toBe(`The step createSandbox took longer than ${limitMs / 1000} s.`)
    await fixture.allAre([id], 'running')
    const settled = await fixture.rowOf(id)
    goOn()
    // A drift check and a sweep later, the row has not changed.
    const looks = () => driver.calls.filter(({ method }) => method === 'list').length
    const seen = looks()
    await until('two looks at everything', () => looks() >= seen + 2)
    expect([driver.creations.get(id), driver.starts.get(id)]).toEqual([1, 1])
    expect(await fixture.rowOf(id)).toMatchObject({
      generation: 1,
      observed_generation: 1,
      lease_token: settled.lease_token,
      ready_at: settled.ready_at,
    })
    expect(await findIllegalTransitions(fixture.pool)).toEqual([])
  })

  test('F28: leaves room to other organizations when all creates of three organizations hang', inTurn, async () => {
    const keys = await Promise.all(Array.from({ length: 4 }, async () => (await fixture.chowder.signUp()).key))
    const create = async (key: string): Promise<string> =>
      (await fixture.chowder.call('POST', '/v1/instances', { key, body: { name: 'x' } })).body.id
    const runs = (id: string, key: string) =>
      until(
        `${id} to run`,
        async () => (await fixture.chowder.call('GET', `/v1/instances/${id}`, { key })).body.status === 'running',
        comesTrueWithinMs,
      )
    const { promise: hanging, resolve: goOn } = Promise.withResolvers<void>()
    const hung = new Set<string>()
    const good = new Set<string>()
    driver.onCall = (method, id) => {
      if (method !== 'create' || good.has(id)) return undefined
      hung.add(id)
      return hanging
    }
    const left: [string, string][] = []
    let most = 0
    // Of the 12 places of a worker with two slots, each takes half of those that are free.
    for (const [index, places] of [6, 3, 2].entries()) {
      const key = present(keys[index])
      for (let count = 0; count < 8; count += 1) left.push([await create(key), key])
      most += places
      await until(`${most} to hang`, () => hung.size === most, comesTrueWithinMs)
    }
    const key = present(keys[3])
    for (let count = 0; count < 3; count += 1) {
      const id = await create(key)
      good.add(id)
      await runs(id, key)
    }
    expect(hung.size).toBe(most)
    goOn()
    driver.onCall = () => {}
    for (const [id, owner] of left) await runs(id, owner)
  })
})

const entry = join(import.meta.dirname, 'chowder.ts')

/** One process of Chowder on a fake cloud, whose signals are the test's. */
function spawnRole(role: 'api' | 'worker', env: Record<string, string>) {
  const child: ChildProcess = spawn(process.execPath, [entry, role], {
    env: { ...compiledOnce, WARM_POOL: '0', ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let output = ''
  for (const stream of [child.stdout, child.stderr]) {
    stream?.setEncoding('utf8').on('data', (text: string) => {
      output += text
    })
  }
  const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()))
  return {
    lines: () =>
      output
        .split('\n')
        .filter((line) => line.startsWith('{') && line.endsWith('}'))
        .map((line) => JSON.parse(line)),
    async url(): Promise<string> {
      const isRunning = () => this.lines().find(({ msg }) => msg?.startsWith('Chowder is running as'))
      const line = await until(`the ${role} to run`, isRunning, 60_000).catch((error: Error) => {
        throw new Error(`${error.message}\n${output}`)
      })
      return line.url ?? ''
    },
    signal: (signal: NodeJS.Signals) => child.kill(signal),
    async close() {
      child.kill('SIGKILL')
      await ended
    },
  }
}

describe.concurrent('a worker whose event loop stands still', () => {
  test('F28: for longer than its lease loses it, another worker finishes, and it writes nothing when it continues', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'chowder-blocked-'))
    await chmod(folder, 0o711)
    const database = await cloneDatabase()
    const cloud = await startFakeCloud({ bootMs })
    const { pool, connection } = database
    const env = {
      PATH: process.env.PATH ?? '',
      HOME: folder,
      PORT: '0',
      RELAY_PORT: '0',
      CLOUD_URL: cloud.url,
      CHOWDER_DATA_DIR: join(folder, 'data'),
      CHOWDER_SECRET_KEY: randomBytes(32).toString('base64'),
      DATABASE_URL: databaseUrl(connection),
      ANTHROPIC_BASE_URL: 'http://127.0.0.1:9',
    }
    const running: ReturnType<typeof spawnRole>[] = []
    const open = (role: 'api' | 'worker') => {
      const opened = spawnRole(role, env)
      running.push(opened)
      return opened
    }
    const rowOf = async (id: string) => (await pool.query('SELECT * FROM instances WHERE id = $1', [id])).rows[0]
    const eventsOf = async (id: string) =>
      (await pool.query('SELECT * FROM events WHERE instance_id = $1 ORDER BY id', [id])).rows
    try {
      const blocked = open('worker')
      const url = await open('api').url()
      await blocked.url()
      const client = api(url, await signUp(url, newSecret('provider key', 'sk-')))

      // It sleeps in the middle of a call that is done meanwhile, so that it has something to go on with.
      cloud.fail({ kind: 'slow', calls: ['start'], slowMs: 3000 })
      const id: string = (await client.post('/v1/instances', { name: 'x' })).body.id
      await until('the call that it sleeps in', () => cloud.struck.get('slow') === 1, 20_000)
      blocked.signal('SIGSTOP')
      const stoppedAt = performance.now()
      const held = await rowOf(id)
      expect(held).toMatchObject({ step: 'startGateway', observed_generation: 0 })

      const other = open('worker')
      await other.url()
      await waitForStatus(client, id, 'running', 60_000)
      const isSettled = async () => {
        const row = await rowOf(id)
        return row.observed_generation === row.generation && row.lease_until <= new Date() ? row : null
      }
      const settled = await until('it to be at rest', isSettled, 10_000)
      expect(settled.lease_token, 'the lease was taken from it').not.toBe(held.lease_token)
      expect(performance.now() - stoppedAt, 'not before it had run out').toBeGreaterThan(20_000)
      const [history, events] = [[...cloud.history], await eventsOf(id)]

      // Alone and awake: that it brings another one up shows that it is past what it was at.
      await other.close()
      blocked.signal('SIGCONT')
      const second: string = (await client.post('/v1/instances', { name: 'y' })).body.id
      await waitForStatus(client, second, 'running', 60_000)
      const taken = () => blocked.lines().some(({ msg, instanceId }) => msg === 'settled' && instanceId === second)
      await until('the one that slept to have made it', taken, 30_000)

      expect(await rowOf(id)).toEqual(settled)
      expect(await eventsOf(id)).toEqual(events)
      expect(cloud.history.filter((event) => event.id === id)).toEqual(history)
      expect(
        history.map(({ what }) => what),
        'one sandbox, one gateway',
      ).toEqual(['created', 'started'])
      expect(settled, 'one generation').toMatchObject({ generation: 1, observed_generation: 1 })
      expect(blocked.lines().filter((line) => line.msg === 'settled' && line.instanceId === id)).toEqual([])
      expect(await findIllegalTransitions(pool)).toEqual([])
      expect(await findDoubled(pool, cloud.history, cloud.overlaps)).toEqual([])
    } finally {
      await Promise.all(running.map((each) => each.close()))
      await cloud.close()
      await database.drop()
      await rm(folder, { recursive: true, force: true })
    }
  })
})
