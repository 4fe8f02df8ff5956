import { chmod, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { pino } from 'pino'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { createDb } from '#database/client.ts'
import { type Cluster, prepareCluster } from '#database/embedded-cluster.ts'
import { findPostmaster, startPostmaster, stopPostmaster } from '#database/embedded-postmaster.ts'
import { migrate } from '#database/migrate.ts'
import { createPlatformOutage } from '#lifecycle/attempt/platform-outage.ts'
import { createStartLimit } from '#lifecycle/attempt/start-limit.ts'
import { createQueue, migrateQueue, type ReconcileQueue } from '#lifecycle/queue/queue.ts'
import { startWorker } from '#lifecycle/worker.ts'
import { createHostDisk } from '#platform/host-disk.ts'
import { newId } from '#platform/ids.ts'
import { createVault } from '#platform/secrets.ts'
import { usualMaxima, usualResources } from '#settings/resources.ts'
import { FakeDriver } from '../support/fake-driver.ts'
import { type FakeGateway, startFakeGateway } from '../support/fake-gateway.ts'
import { operationsOf, readDocument, requestOf } from '../support/operations.ts'
import { present } from '../support/present.ts'
import { openProxy, type TcpProxy } from '../support/tcp-proxy.ts'
import { until } from '../support/until.ts'
import { type Answer, type Replica, signUp, startReplicas } from './api-replicas.ts'

/** The length of the outage: 30 s in the long run, less in CI. */
const outageMs = Number(process.env.CHAOS_AWAY_SECONDS ?? 8) * 1000
/** From the database's return until requests are served again. */
const recoversWithinMs = 15_000
const settlesWithinMs = 60_000
/** How many connections the API has for its statements. */
const poolSize = 10
/** The longest that a statement on a connection that was cut in silence is waited for, and a little. */
const noticedWithinMs = 30_000

let dataDir: string
let cluster: Cluster
let gateway: FakeGateway
/** Between the API and the database, and between the worker and it. */
let apiProxy: TcpProxy
let workerProxy: TcpProxy
let started: Awaited<ReturnType<typeof startReplicas>>
let api: Replica
let organization: { id: string; key: string }
/** The test's own way to the database. */
let direct: pg.PoolConfig
let worker: { stop(): Promise<void> }
let queue: ReconcileQueue
let workerPool: pg.Pool
const logged: string[] = []

const driver = new FakeDriver(() => gateway.endpoint)
// The API is a process of its own and puts its instances on the local driver.
Object.defineProperty(driver, 'name', { value: 'local' })

const startDatabase = () => startPostmaster(cluster, { durable: false })

async function onServer(statement: string, values: unknown[] = []) {
  const client = new pg.Client(direct)
  client.on('error', () => {})
  await client.connect()
  return client.query(statement, values).finally(() => client.end())
}

beforeAll(async () => {
  gateway = await startFakeGateway({})
  dataDir = await mkdtemp(join(tmpdir(), 'chowder-database-'))
  await chmod(dataDir, 0o711) // as root the database runs as another user
  cluster = await prepareCluster(dataDir, false)
  await startDatabase()
  const address = (await findPostmaster(cluster))?.address
  if (!address) throw new Error('PostgreSQL has no address')
  direct = { ...address, user: 'chowder', password: cluster.password, database: 'postgres' }
  const migrating = new pg.Pool({ ...direct, max: 1 })
  await migrate(migrating, migrateQueue)
  await migrating.end()

  const { host, port } = address
  const target = host.startsWith('/') ? { path: join(host, `.s.PGSQL.${port}`) } : { host, port }
  apiProxy = await openProxy(target)
  workerProxy = await openProxy(target)
  const through = ({ host, port }: TcpProxy) => ({ ...direct, host, port })
  const { user, password, database } = direct
  const url = `postgresql://${user}:${password}@${apiProxy.host}:${apiProxy.port}/${database}`
  started = await startReplicas(1, { connectionString: url })
  api = present(started.replicas[0])
  organization = await signUp(api)

  const log = pino({ level: 'info' }, { write: (line: string) => void logged.push(line) })
  const connection = through(workerProxy)
  workerPool = new pg.Pool({
    ...connection,
    max: 10,
    connectionTimeoutMillis: 5000,
    statement_timeout: 15_000,
    query_timeout: 20_000,
  })
  workerPool.on('error', () => {})
  queue = createQueue({ kind: 'postgres', connection }, log)
  const deps = {
    db: createDb(workerPool),
    vault: createVault(started.secretKey),
    region: driver.name,
    hasUnnamed: true,
    sandboxes: driver,
    baseUrls: { anthropic: 'http://127.0.0.1:9', openai: 'http://127.0.0.1:9', gemini: 'http://127.0.0.1:9' },
    relay: { url: undefined, port: 9 },
    clawhubUrl: undefined,
    hostDisk: createHostDisk('/', 0),
    resources: { defaults: usualResources, maxima: usualMaxima },
    warmPool: 0,
    minOpenclawVersion: '2026.1.1',
    starts: createStartLimit(),
    platformOutage: createPlatformOutage(driver, log),
    timeouts: { startWithoutProgressMs: 5000, startMs: 10_000, hungMs: 500, busyMs: 60_000, graceMs: 200 },
    queue,
    log,
  }
  const rounds = { sweepEveryMs: 1000, driftEveryMs: 5000 }
  worker = await startWorker(
    { ...deps, processId: newId(), alive: () => [], regions: () => [deps] },
    queue,
    8,
    rounds,
    new AbortController().signal,
    [],
  )
})

afterAll(async () => {
  await worker?.stop()
  await queue?.close()
  await workerPool?.end()
  await started?.close()
  await apiProxy?.close()
  await workerProxy?.close()
  await stopPostmaster(cluster)
  await gateway?.close()
  await rm(dataDir, { recursive: true, force: true })
})

function expectUnavailable({ status, headers, body }: Answer, what = ''): void {
  expect([what, status, headers['retry-after']], JSON.stringify(body)).toEqual([what, 503, '1'])
}

/** Creates as a careful client does: the same key until it is answered. */
async function createUntilAnswered(name: string): Promise<string> {
  for (const deadline = performance.now() + settlesWithinMs; performance.now() < deadline; await sleep(100)) {
    const headers = { 'idempotency-key': name.replaceAll(' ', '-') }
    const answer = await api.call('POST', '/v1/instances', { key: organization.key, body: { name }, headers })
    if (answer.status === 201) return answer.body.id
    if (answer.status !== 409) expectUnavailable(answer, name)
  }
  throw new Error(`${name} was not created`)
}

const statusOf = async (id: string): Promise<string> =>
  (await api.call('GET', `/v1/instances/${id}/status`, { key: organization.key })).body.status

/** All of them run, and the organization has them once each. */
async function expectAllRunning(names: string[], ids: string[]): Promise<void> {
  const { rows } = await onServer('SELECT id, name FROM instances WHERE name = ANY($1) ORDER BY name', [names])
  expect(
    rows.map(({ name }) => name),
    'nothing is there twice',
  ).toEqual([...names].sort())
  expect(new Set(rows.map(({ id }) => id)), 'and what is there was answered').toEqual(new Set(ids))
  for (const id of ids) {
    await until(`${id} to run`, async () => (await statusOf(id)) === 'running', settlesWithinMs)
    expect(driver.creations.get(id), 'one sandbox').toBe(1)
  }
}

const firstServed = async () => {
  const backAt = performance.now()
  const list = () => api.call('GET', '/v1/instances?limit=1', { key: organization.key })
  await until('a request to be served', async () => (await list()).status === 200, 30_000)
  return performance.now() - backAt
}

/** Holds an instance in the middle of its step `createSandbox`. */
async function holdInStep(name: string) {
  const { promise: until, resolve: goOn } = Promise.withResolvers<void>()
  const { promise: held, resolve: isHeld } = Promise.withResolvers<void>()
  driver.onCall = (method) => {
    if (method !== 'create') return undefined
    driver.onCall = () => {}
    isHeld()
    return until
  }
  const id = await createUntilAnswered(name)
  await held
  return { id, goOn }
}

test('F5: PostgreSQL is restarted under load: 503 with Retry-After, nothing is lost or duplicated, and a worker continues its step', async () => {
  const held = await holdInStep('held in a step')
  const names = Array.from({ length: 60 }, (_, index) => `restarted ${String(index).padStart(2, '0')}`)
  const created = Promise.all(
    names.map(async (name, index) => {
      await sleep(index * 50)
      return createUntilAnswered(name)
    }),
  )
  created.catch(() => {})
  await sleep(1000)
  await stopPostmaster(cluster)
  await startDatabase()
  held.goOn()
  expect(await firstServed()).toBeLessThan(recoversWithinMs)
  await expectAllRunning([...names, 'held in a step'], [...(await created), held.id])
})

test(`F5: PostgreSQL is unreachable for ${outageMs / 1000} s: every route answers 503 with Retry-After, and all work continues afterwards`, async () => {
  const document = await readDocument()
  const held = await holdInStep('held during the outage')
  await stopPostmaster(cluster)
  const goneAt = performance.now()
  await sleep(1000) // a key that was just used is remembered that long
  held.goOn()
  const waiting = createUntilAnswered('requested during the outage')
  waiting.catch(() => {})

  const values: Record<string, string> = {
    instance_id: held.id,
    session_id: 'main',
    channel: 'whatsapp',
    skill_name: 'web-search',
    response_id: `resp_${held.id.replaceAll('-', '')}`,
    key_id: held.id,
    webhook_id: held.id,
    event_id: '1',
    schedule_id: held.id,
    hook_id: held.id,
    approval_id: held.id,
    job_id: 'tick',
    path: 'notes.txt',
    q: 'web',
  }
  const needsNoDatabase = new Set(['GET /healthz', 'GET /v1/instances/{instance_id}/channels/{channel}'])
  const asked: string[] = []
  for (const documented of operationsOf(document)) {
    const { method, url, headers, payload } = requestOf(documented, values)
    const answer = await api.call(method, url, { key: organization.key, body: payload, headers })
    expect(answer.ms, `${documented.name} is answered soon`).toBeLessThan(4500)
    asked.push(documented.name)
    if (needsNoDatabase.has(documented.name)) expect(answer.status, documented.name).toBe(200)
    else if (documented.path === '/readyz') expect([answer.status, answer.body.status]).toEqual([503, 'unavailable'])
    else if (documented.path !== '/v1/webhooks/stripe') expectUnavailable(answer, documented.name)
  }
  expect(asked.length).toBeGreaterThan(40)
  await sleep(Math.max(0, outageMs - (performance.now() - goneAt)))

  await startDatabase()
  expect(await firstServed()).toBeLessThan(recoversWithinMs)
  await expectAllRunning(['held during the outage', 'requested during the outage'], [held.id, await waiting])
  expect(logged.filter((line) => JSON.parse(line).level >= 50)).toEqual([])
})

test('F5: PostgreSQL is read-only: writes answer 503 with Retry-After, reads are served, and writes succeed afterwards', async () => {
  const id = await createUntilAnswered('before it was read-only')
  await until('it to run', async () => (await statusOf(id)) === 'running', settlesWithinMs)
  await onServer('ALTER SYSTEM SET default_transaction_read_only = on')
  await onServer('SELECT pg_reload_conf()')
  await until(
    'it to be read-only',
    async () => (await onServer('SHOW transaction_read_only')).rows[0].transaction_read_only === 'on',
  )
  const { key } = organization
  const before = await api.call('GET', `/v1/instances/${id}`, { key })
  const writes: [Parameters<Replica['call']>[0], string, unknown?][] = [
    ['POST', '/v1/organization/signup', { name: 'Acme' }],
    ['PATCH', '/v1/organization', { name: 'Other' }],
    ['POST', '/v1/organization/keys', { name: 'k' }],
    ['POST', '/v1/keys', { name: 'k', instance_ids: [id], permissions: ['read'] }],
    ['POST', '/v1/instances', { name: 'no' }],
    ['PATCH', `/v1/instances/${id}`, { name: 'renamed' }],
    ['PATCH', `/v1/instances/${id}`, { openclaw_config: {} }],
    ['POST', `/v1/instances/${id}/stop`],
    ['DELETE', `/v1/instances/${id}`],
  ]
  for (const [method, path, body] of writes) {
    expectUnavailable(await api.call(method, path, { key, body }), `${method} ${path}`)
  }
  for (const path of ['/v1/instances', `/v1/instances/${id}/events`, '/v1/organization', '/v1/keys', '/readyz']) {
    expect((await api.call('GET', path, { key })).status, path).toBe(200)
  }
  expect((await api.call('GET', `/v1/instances/${id}`, { key })).body).toEqual(before.body)
  const waiting = createUntilAnswered('asked for while it was read-only')
  waiting.catch(() => {})
  await sleep(1500)

  await onServer('BEGIN READ WRITE; SET default_transaction_read_only = off; COMMIT')
  const client = new pg.Client({ ...direct, options: '-c default_transaction_read_only=off' })
  await client.connect()
  await client.query('ALTER SYSTEM RESET default_transaction_read_only')
  await client.query('SELECT pg_reload_conf()')
  await client.end()
  await expectAllRunning(['asked for while it was read-only'], [await waiting])
  expect((await api.call('POST', `/v1/instances/${id}/stop`, { key })).status).toBe(200)
})

test('F6: slow queries hold every connection: health checks are right and fast, other requests answer 503, and all succeed afterwards', async () => {
  const { key } = organization
  const { id } = (await api.call('POST', '/v1/instances', { key, body: { name: 'read under load' } })).body
  const locker = new pg.Client(direct)
  await locker.connect()
  await locker.query('BEGIN; LOCK TABLE instances IN ACCESS EXCLUSIVE MODE')
  const waiting = Array.from(
    { length: 100 },
    (_, index) =>
    index % 2 === 0
      ? api.call('GET', `/v1/instances/${id}`, { key })
      : api.call('POST', '/v1/instances', { key, body: { name: 'under load' }, headers: { 'idempotency-key': `l${index}` } }), // biome-ignore format: short
  )
  await sleep(1000)
  for (let round = 0; round < 3; round += 1) {
    const [alive, ready] = await Promise.all([api.call('GET', '/healthz'), api.call('GET', '/readyz')])
    expect([alive.status, ready.status, ready.body.checks.database]).toEqual([200, 503, false])
    expect(alive.ms, 'the process answers at once').toBeLessThan(4000)
    expect(ready.ms, 'and says soon that its database does not').toBeLessThan(4500)
  }
  await sleep(Math.max(0, 5000))
  await locker.query('ROLLBACK')
  await locker.end()
  const freeAt = performance.now()
  const answers = await Promise.all(waiting)
  expect(performance.now() - freeAt, 'nothing stays behind').toBeLessThan(8000)
  const shed = answers.filter(({ status }) => status === 503)
  for (const answer of shed) expectUnavailable(answer)
  expect(Math.max(...shed.map(({ ms }) => ms)), 'nobody waits long for a refusal').toBeLessThan(12_000)
  expect(shed.length, 'all but what the pool has connections for').toBeGreaterThanOrEqual(85)
  expect(answers.every(({ status }) => [200, 201, 503].includes(status))).toBe(true)

  for (let round = 0; round < 100 / poolSize; round += 1) {
    const after = await Promise.all(
      Array.from({ length: poolSize }, (_, index) =>
        api.call('POST', '/v1/instances', {
          key,
          body: { name: `after load ${round} ${index}` },
          headers: { 'idempotency-key': `a${round}-${index}` },
        }),
      ),
    )
    expect(new Set(after.map(({ status }) => status))).toEqual(new Set([201]))
  }
  expect((await api.call('GET', '/readyz')).status).toBe(200)
})

test('F5: connections that break without a sign are detected within 20 s, and later requests use new ones', async () => {
  const { key } = organization
  const list = () => api.call('GET', '/v1/instances?limit=1', { key })
  const create = (name: string) =>
    api.call('POST', '/v1/instances', {
      key,
      body: { name },
      headers: { 'idempotency-key': name.replaceAll(' ', '-') },
    })
  await Promise.all([list(), list()])
  // One statement by itself, and one in a transaction: whatever these two connections were asked never arrives.
  const holds = [
    apiProxy.holdWhen('order by "instances"', 'to server'),
    apiProxy.holdWhen('pg_try_advisory_xact_lock', 'to server'),
  ]
  const caught = [list(), create('cut in silence')]
  await Promise.all(holds.map(({ held }) => held))
  // And the rest of the pool, where already the beginning of a transaction is lost.
  for (let count = caught.length; count < poolSize; count += 1) {
    holds.push(apiProxy.holdWhen('begin\0', 'to server'))
    caught.push(api.call('PATCH', '/v1/organization', { key, body: { name: 'cut in silence' } }))
  }
  await Promise.all(holds.map(({ held }) => held))
  for (const answer of await Promise.all(caught)) {
    expectUnavailable(answer)
    expect(answer.ms).toBeLessThan(noticedWithinMs)
  }
  for (let round = 0; round < 20; round += 1) {
    const answers = await Promise.all([list(), list(), create(`after the cut ${round}`)])
    expect(answers.map(({ status }) => status)).toEqual([200, 200, 201])
    for (const { ms } of answers) expect(ms).toBeLessThan(10_000)
  }
  const created = await create('cut in silence')
  expect(created.status).toBe(201)
  for (const hold of holds) hold.drop()

  // The pool has all its places again: so many statements at once reach the database.
  const locker = new pg.Client(direct)
  await locker.connect()
  await locker.query('BEGIN; LOCK TABLE instances IN ACCESS EXCLUSIVE MODE')
  const reads = Array.from({ length: poolSize }, () => api.call('GET', `/v1/instances/${created.body.id}`, { key }))
  const waiting = async () =>
    (await onServer(`SELECT FROM pg_stat_activity WHERE application_name = 'chowder-api' AND wait_event_type = 'Lock'`))
      .rowCount
  await until('all of them to be there', async () => (await waiting()) === poolSize).finally(() => locker.end())
  expect((await Promise.all(reads)).map(({ status }) => status)).toEqual(reads.map(() => 200))
})
