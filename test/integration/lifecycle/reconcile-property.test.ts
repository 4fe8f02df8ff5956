import { afterAll, expect, test } from 'vitest'
import { AppError } from '#errors/app-error.ts'
import { claimDue, firstId } from '#instances/claim.ts'
import { changeIntent, terminateInstance } from '#instances/intent.ts'
import { getInstance } from '#instances/row.ts'
import { publicStatus } from '#instances/status.ts'
import { reconcileInstance } from '#lifecycle/attempt/reconcile.ts'
import { allShards } from '#lifecycle/queue/shards.ts'
import { createDriftDetection } from '#lifecycle/watch/drift.ts'
import { FakeDriver, type Fault } from '../../support/fake-driver.ts'
import { startFakeGateway } from '../../support/fake-gateway.ts'
import { openTestChowder } from '../../support/test-chowder.ts'

const gateway = await startFakeGateway({})
const driver = new FakeDriver(() => gateway.endpoint)

const chowder = await openTestChowder({ sandboxes: driver, timeouts: { graceMs: 10, hungMs: 50 } })
const organization = await chowder.signUp()
const detectDrift = createDriftDetection(chowder.deps, () => allShards).detect
await chowder.database.pool.query('UPDATE organizations SET instance_limit = NULL')
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})

/** Numbers from 0 to 1, the same for the same seed (mulberry32). */
function numbersFrom(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296
  }
}

const methods: Fault['method'][] = ['prepare', 'create', 'start', 'stop', 'destroy', 'observe']
const operations = 12
const anyOrganization = { afterOrganization: firstId, exceptOrganizations: [] }
const maxAttempts = 40

/** A worker that is suspended in a call, as by SIGSTOP or on a machine that sleeps, until it is resumed. */
interface SuspendedWorker {
  /** The fencing token of its lease. */
  token: number
  resume(): Promise<void>
}

/**
 * Runs a worker on the row. At the call with the given number it may be killed, which ends it for good, or suspended:
 * the returned worker goes on when it is resumed, with or without its lease.
 */
async function runWorker(
  id: string,
  fate: 'completes' | 'is killed' | 'is suspended',
  atCall: number,
): Promise<SuspendedWorker | null> {
  const stop = new AbortController()
  const reached = Promise.withResolvers<void>()
  const resumed = Promise.withResolvers<void>()
  let calls = 0
  if (fate !== 'completes') {
    driver.onCall = async (_method, called) => {
      if (called === id) calls += 1
      if (calls !== atCall) return
      reached.resolve()
      await (fate === 'is killed' ? new Promise(() => {}) : resumed.promise)
    }
  }
  const takenAt = performance.now()
  const taken = await claimDue(chowder.deps.db, { regions: [chowder.deps], ...anyOrganization })
  if (!taken) {
    driver.onCall = () => {}
    return null
  }
  expect(taken.id, 'no other row is due').toBe(id)
  const working = reconcileInstance(chowder.deps, taken, takenAt, stop.signal)
  working.catch(() => {}) // a suspended worker that lost its lease ends with an error
  let isReached = false
  await Promise.race([
    working,
    reached.promise.then(() => {
      isReached = true
    }),
  ])
  driver.onCall = () => {}
  if (!isReached || fate !== 'is suspended') return null
  return {
    token: (await rowOf(id)).lease_token,
    async resume() {
      resumed.resolve()
      await working.catch(() => {})
    },
  }
}

const rowOf = async (id: string) =>
  (await chowder.database.pool.query('SELECT * FROM instances WHERE id = $1', [id])).rows[0]

async function resume(id: string, worker: SuspendedWorker): Promise<void> {
  const before = await rowOf(id)
  await worker.resume()
  if (before.lease_token !== worker.token)
    expect(await rowOf(id), 'a worker that lost its lease writes nothing').toEqual(before)
}

/** Lets the lease of a dead worker expire, and the time of the next attempt come. */
const letTimePass = (id: string) =>
  chowder.database.pool.query(
    `UPDATE instances SET lease_until = now() - interval '1 second', next_attempt_at = now() WHERE id = $1`,
    [id],
  )

async function runScenario(seed: number): Promise<void> {
  const random = numbersFrom(seed)
  const pick = <T>(choices: readonly T[]): T => choices[Math.floor(random() * choices.length)] as T
  const { db } = chowder.deps
  const { body } = await chowder.call('POST', '/v1/instances', {
    key: organization.key,
    body: { name: `seed ${seed}` },
  })
  const id: string = body.id
  let wanted: 'running' | 'stopped' | 'terminated' = 'running'
  const suspended: SuspendedWorker[] = []
  let resumed = 0

  for (let step = 0; step < operations; step += 1) {
    const chance = random()
    if (chance < 0.35) {
      const intent = pick(['start', 'stop', 'stop', 'start', 'delete'] as const)
      try {
        if (intent === 'delete') await terminateInstance(db, organization.id, id)
        else await changeIntent(db, organization.id, id, intent)
        wanted = intent === 'delete' ? 'terminated' : intent === 'start' ? 'running' : 'stopped'
      } catch (error) {
        if (!(error instanceof AppError && error.kind === 'conflict')) throw error
      }
    } else if (chance < 0.55) {
      driver.fail({ method: pick(methods), when: pick(['before', 'after']), times: 1 + Math.floor(random() * 3) })
    } else if (chance < 0.65) {
      if (driver.sandboxes.get(id)?.running) driver.die(id, pick([1, 137, null]))
    } else if (chance < 0.72 && suspended.length > 0) {
      resumed += 1
      await resume(id, suspended.shift() as SuspendedWorker)
    } else {
      await letTimePass(id)
      const fate = pick(['completes', 'completes', 'completes', 'is killed', 'is suspended'] as const)
      const worker = await runWorker(id, fate, 1 + Math.floor(random() * 12))
      if (worker) suspended.push(worker)
    }
  }
  for (const worker of suspended) {
    resumed += 1
    await resume(id, worker)
  }

  driver.heal()
  let row = await getInstance(db, organization.id, id)
  const settle = async () => {
    for (let attempt = 0; attempt < maxAttempts && row.observedGeneration < row.generation; attempt += 1) {
      await letTimePass(id)
      await runWorker(id, 'completes', 0)
      row = await getInstance(db, organization.id, id)
    }
  }
  await settle()
  expect(row.observedGeneration, 'it settles').toBe(row.generation)
  // A suspended worker may have changed the sandbox after it lost its lease: the detection of drift finds that.
  await letTimePass(id)
  await detectDrift(AbortSignal.timeout(10_000))
  row = await getInstance(db, organization.id, id)
  await settle()

  expect(row.observedGeneration, 'it settles').toBe(row.generation)
  expect(row.desiredState, 'the last accepted intent wins').toBe(wanted)
  const sandbox = driver.sandboxes.get(id)
  const created = driver.creations.get(id) ?? 0
  // A worker that is resumed in its create after a delete creates a sandbox again; the detection of drift finds it.
  expect(created, 'one sandbox at most, and none is created again').toBeLessThanOrEqual(1 + resumed)
  const status = publicStatus(row)
  if (wanted === 'terminated') expect([status, sandbox]).toEqual(['terminated', undefined])
  if (wanted === 'stopped') expect([status, sandbox?.running ?? false]).toEqual(['stopped', false])
  if (wanted === 'running' && status === 'error') {
    expect([sandbox?.running ?? false, row.errorMessage]).toEqual([false, expect.any(String)])
  }
  if (wanted === 'running' && status !== 'error') expect(status).toBe('running')
  driver.sandboxes.delete(id)
  await chowder.database.pool.query('DELETE FROM instances WHERE id = $1', [id]) // no drift for the next seed
}

/** Runs the scenarios of `count` seeds in a row, or that of SEED alone. */
async function runScenarios(count: number): Promise<void> {
  const first = Number(process.env.SEED ?? Math.floor(Math.random() * 1e9))
  const seeds = process.env.SEED ? 1 : count
  for (let seed = first; seed < first + seeds; seed += 1) {
    await runScenario(seed).catch((error: unknown) => {
      throw new Error(`SEED=${seed} repeats this failure`, { cause: error })
    })
  }
}

const property = 'an instance settles as its last intent wants, with one sandbox at most, whatever fails or is killed'
test(property, { timeout: 300_000 }, () => runScenarios(40))
test(`${property}, in 400 runs`, { timeout: 1_000_000, tags: ['long'] }, () => runScenarios(400))

test('a delete during any call of a worker is never lost', async () => {
  const { db } = chowder.deps
  for (let calls = 1; ; calls += 1) {
    const { body } = await chowder.call('POST', '/v1/instances', { key: organization.key, body: { name: 'x' } })
    const id: string = body.id
    const worker = await runWorker(id, 'is suspended', calls)
    await terminateInstance(db, organization.id, id)
    await worker?.resume()
    for (let attempt = 0; attempt < maxAttempts && (await isDue(id)); attempt += 1) {
      await letTimePass(id)
      await runWorker(id, 'completes', 0)
    }
    expect(driver.sandboxes.has(id), `a sandbox is left after a delete during call ${calls}`).toBe(false)
    if (!worker) {
      expect(calls, 'calls of a allShards start').toBeGreaterThan(5)
      break
    }
  }
})

const isDue = async (id: string) => {
  const { generation, observedGeneration } = await getInstance(chowder.deps.db, organization.id, id)
  return observedGeneration < generation
}
