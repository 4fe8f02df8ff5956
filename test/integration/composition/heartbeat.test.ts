import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { pino } from 'pino'
import { afterAll, expect, test } from 'vitest'
import { queueAnswers } from '#commands/doctor/queue.ts'
import { createDrain } from '#composition/drain.ts'
import { createHeartbeat, openHeartbeat } from '#composition/heartbeat.ts'
import { isProcessAlive } from '#database/processes.ts'
import { loadConfig } from '#settings/config.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { startFakeGateway } from '../../support/fake-gateway.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const signal = new AbortController().signal
const silent = pino({ level: 'silent' })
const gateway = await startFakeGateway({ config: {} })
let areWorkersMissing = false

const sandboxes = new FakeDriver(() => gateway.endpoint)
const chowder = await openTestChowder({ sandboxes, areWorkersMissing: () => areWorkersMissing })
const { key } = await chowder.signUp()
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})

const query = (text: string, ...values: unknown[]) => chowder.database.pool.query(text, values)
const factsOf = (role: string, id: string = randomUUID()) => {
  const regions = role === 'api' ? [] : ['fake/fake']
  const facts = { id, role, regions, version: '1.2.3', commit: 'abc', host: 'here', pid: 7 }
  return () => facts
}
const beat = (role: string) => createHeartbeat(chowder.database.db, factsOf(role), silent).task.run(signal)
const age = (seconds: number) => query('UPDATE processes SET seen_at = now() - make_interval(secs => $1)', seconds)
const readiness = async () => (await chowder.call('GET', '/readyz')).body
const readinessLastsMs = 600
/** Waits for a new answer: one is given for half a second. */
const counts = (workers: number) => until(`${workers} workers`, async () => (await readiness()).workers === workers)

async function doctorsFindings(): Promise<{ what: string; whatToDo: string }[]> {
  const { db } = chowder.deps
  const deps = { config: loadConfig({}), db, regions: [chowder.deps], vault: null, queue: chowder.queue }
  const findings: { what: string; whatToDo: string }[] = []
  for await (const finding of queueAnswers(deps, signal)) findings.push(finding)
  return findings
}

test('a process is in the table while it lives, and its drain removes it', async () => {
  const drain = createDrain(silent)
  let regions = ['fake/fake']
  await openHeartbeat(
    { role: 'worker', config: loadConfig({}), dataDir: '', log: silent, drain },
    chowder.database.db,
    randomUUID(),
    () => regions,
  )
  const rows = () => query("SELECT * FROM processes WHERE role <> ''").then(({ rows }) => rows)
  const [row] = await rows()
  expect(row).toMatchObject({
    role: 'worker',
    version: expect.stringMatching(/^\d+\.\d+\.\d+$/),
    pid: process.pid,
    regions,
  })
  regions = ['fake/fake', 'fake/west']
  await until('the next beat', async () => (await rows())[0]?.regions.length === 2)
  await drain.run({ interrupted: false })
  expect(await rows()).toEqual([])
})

test('a process that drains works on no instances any more, and is alive until its drain ends', async () => {
  const drain = createDrain(silent)
  await openHeartbeat(
    { role: 'worker', config: loadConfig({}), dataDir: '', log: silent, drain },
    chowder.database.db,
    randomUUID(),
    () => ['fake/fake'],
  )
  const ending = Promise.withResolvers<void>()
  drain.add('api', () => ending.promise)
  const drained = drain.run({ interrupted: false })
  await until('it to serve nothing', async () => {
    const { rows } = await query("SELECT regions FROM processes WHERE role <> ''")
    return rows.length === 1 && rows[0].regions.length === 0
  })
  ending.resolve()
  await drained
})

test('a worker is alive for 15 s after its last beat, and its row is deleted after an hour', async () => {
  await beat('worker')
  await beat('all')
  await beat('api')
  await counts(2)
  expect(await readiness()).toMatchObject({ status: 'ready', workers: 2, version: expect.stringMatching(/^\d/) })
  await age(14)
  await sleep(readinessLastsMs)
  expect((await readiness()).workers).toBe(2)
  await age(16)
  await counts(0)
  expect(await readiness()).toMatchObject({ status: 'ready', workers: 0, commit: expect.any(String) })
  await age(3601)
  await beat('api')
  expect((await query("SELECT role FROM processes WHERE role <> ''")).rows).toEqual([{ role: 'api' }])
})

test('without a worker the log of the API says so once, and once when there is one; not in its first 15 s', async () => {
  await query('DELETE FROM processes')
  const lines: string[] = []
  const log = { info: (text: string) => void lines.push(text), warn: (text: string) => void lines.push(text) }
  const api = createHeartbeat(chowder.database.db, factsOf('api'), log as never)
  await api.task.run(signal)
  expect([api.areWorkersMissing(), lines]).toEqual([false, []])
  for (let run = 0; run < 6; run += 1) await api.task.run(signal)
  expect([api.areWorkersMissing(), lines]).toEqual([false, []])
  await api.task.run(signal)
  expect(api.areWorkersMissing()).toBe(true)
  expect(lines).toEqual([
    'no worker is alive: changes are accepted and wait. Start one with npm start -- worker or, ' +
      'without DATABASE_URL, run npm start in place of npm start -- api.',
  ])
  await beat('worker')
  await api.task.run(signal)
  expect(api.areWorkersMissing()).toBe(false)
  expect(lines.at(-1)).toBe('a worker is alive again')
})

test('the holder of a row is alive for 15 s after its beat, and nobody is dead before beats have gone on for 15 s', async () => {
  await query('DELETE FROM processes')
  const [judge, holder] = [randomUUID(), randomUUID()]
  const isAlive = async (id: string) => {
    const { rows } = await query(`SELECT ${isProcessAlive('held.by')} AS alive FROM (SELECT $1::uuid AS by) held`, id)
    return rows[0].alive
  }
  const beatOf = (id: string) => createHeartbeat(chowder.database.db, factsOf('api', id), silent).task.run(signal)
  const agePart = (column: string, id: string, seconds: number) =>
    query(`UPDATE processes SET ${column} = now() - make_interval(secs => $2) WHERE id = $1`, id, seconds)

  expect(await isAlive(holder)).toBe(true) // no process beats
  await beatOf(judge)
  expect(await isAlive(holder)).toBe(true)
  await agePart('since', judge, 16)
  await beatOf(judge)
  expect(await isAlive(holder)).toBe(false)
  await beatOf(holder)
  await agePart('seen_at', holder, 14)
  expect(await isAlive(holder)).toBe(true)
  await agePart('seen_at', holder, 16)
  expect(await isAlive(holder)).toBe(false)

  // An outage of the database: nobody has beaten for a while, and the judge is the first to beat again.
  await agePart('seen_at', judge, 16)
  await beatOf(judge)
  expect(await isAlive(holder)).toBe(true)
})

test('the doctor finds an API without a worker, and nothing where no process runs', async () => {
  await query('DELETE FROM processes')
  expect(await doctorsFindings()).toEqual([])
  await beat('api')
  expect(await doctorsFindings()).toMatchObject([
    {
      what: 'No worker runs.',
      whatToDo: expect.stringMatching(/^Start one with npm start -- worker or, without DATABASE_URL/),
    },
  ])
  await beat('worker')
  expect(await doctorsFindings()).toEqual([])
})

test('an instance that is due waits for a worker while none has been seen', async () => {
  areWorkersMissing = true
  const { body } = await chowder.call('POST', '/v1/instances', { key, body: { name: 'a' } })
  expect(body).toMatchObject({ status: 'provisioning', step: 'waiting for a worker' })
  const status = () => chowder.call('GET', `/v1/instances/${body.id}/status`, { key })
  expect((await status()).body.step).toBe('waiting for a worker')
  areWorkersMissing = false
  expect((await status()).body.step).toBeNull()
})

test('lines of both sides name the request and the instance, those of a worker the intent’s request', async () => {
  const worker = await chowder.startWorker()
  try {
    const asRequest = (id: string) => ({ key, headers: { 'x-request-id': id } })
    const created = await chowder.call('POST', '/v1/instances', { ...asRequest('create-1'), body: { name: 'b' } })
    const path = `/v1/instances/${created.body.id}`
    const linesOf = (message: string) =>
      chowder.logged
        .map((line) => JSON.parse(line))
        .filter((line) => line.msg === message && line.instanceId === created.body.id)
    await until('it to run', async () => (await chowder.call('GET', path, { key })).body.status === 'running')
    await chowder.call('POST', `${path}/stop`, asRequest('stop-1'))
    await until('the second settlement', () => linesOf('settled').length === 2)
    expect(linesOf('settled').map(({ requestId }) => requestId)).toEqual(['create-1', 'stop-1'])
    expect(linesOf('step done').filter(({ generation }) => generation === 1)[0].requestId).toBe('create-1')
  } finally {
    await worker.stop()
  }
})

test('lines of an attempt name the new intent and its request once the intent has changed', async () => {
  const worker = await chowder.startWorker()
  const asRequest = (id: string) => ({ key, headers: { 'x-request-id': id } })
  let deletion: Promise<unknown> | undefined
  sandboxes.onCall = async (method, id) => {
    if (method !== 'start' || deletion) return
    deletion = chowder.call('DELETE', `/v1/instances/${id}`, asRequest('delete-2'))
    await until('the delete', async () => {
      const { rows } = await query('SELECT 1 FROM instances WHERE id = $1 AND generation = 2', id)
      return rows.length === 1
    })
  }
  try {
    const { body } = await chowder.call('POST', '/v1/instances', { ...asRequest('create-2'), body: { name: 'c' } })
    const lines = () =>
      chowder.logged.map((line) => JSON.parse(line)).filter(({ instanceId }) => instanceId === body.id)
    const settled = await until('the settlement', () => lines().find(({ msg }) => msg === 'settled'))
    expect(settled).toMatchObject({ generation: 2, requestId: 'delete-2', desiredState: 'terminated' })
    expect(lines().find(({ step }) => step === 'createSandbox')).toMatchObject({ generation: 1, requestId: 'create-2' })
    expect(lines().find(({ step }) => step === 'destroySandbox')).toMatchObject({
      generation: 2,
      requestId: 'delete-2',
    })
  } finally {
    sandboxes.onCall = () => {}
    await deletion
    await worker.stop()
  }
})
