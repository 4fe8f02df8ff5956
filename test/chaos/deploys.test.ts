import { once } from 'node:events'
import { request as httpRequest, type IncomingMessage } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import { afterAll, afterEach, beforeAll, expect, test, vi } from 'vitest'
import { type ChowderProcess, findGateway, type GatewayProcess, removeDataDir } from '../support/chowder-process.ts'
import { present } from '../support/present.ts'
import { type SandboxesSeen, sandboxesSeen } from '../support/sandboxes-seen.ts'
import { installStub, type StubProvider, startStubProvider } from '../support/stub-agents.ts'
import {
  answerJson,
  responseObject,
  type StubGateway,
  startStream,
  startStubGateway,
  streamHead,
} from '../support/stub-responses-gateway.ts'
import { openProxy, type TcpProxy } from '../support/tcp-proxy.ts'
import { cloneDatabase, type TestDatabase } from '../support/test-database.ts'
import { until } from '../support/until.ts'
import {
  databaseUrl,
  type Installation,
  makeInstallation,
  type Replica,
  signUp,
  startReplica,
  startRole,
} from './api-replicas.ts'

vi.setConfig({ testTimeout: 180_000 })

/** The time that an API process leaves to turns, and then to other open requests. */
const turnDrainSeconds = 5
const apiDrainMs = turnDrainSeconds * 1000 + 5000
/** Of a turn that ends by itself while its API process drains. */
const soon = 'soon'
const soonMs = 2000
/** The time that a worker leaves to running reconciles. */
const workerDrainMs = 20_000
/** A released row is taken by its job or the next sweep. A lease of a killed worker lasts at least 15 s more. */
const goesOnWithinMs = 12_000
const settlesWithinMs = 60_000
/** Longer than the start of a gateway may take to be seen, and than a worker drains. */
const slowStartMs = workerDrainMs + 30_000

let database: TestDatabase
let installation: Installation
let sandboxes: SandboxesSeen
/** The server to which the agents keep their own connections. */
let provider: StubProvider
/** Stands in for an agent whose turns take as long as the test wants. */
let talker: StubGateway
/** Ends with everything; the replica that a test ends is its own. */
let api: Replica
let worker: ChowderProcess
const extra: ChowderProcess[] = []
const proxies: TcpProxy[] = []
let organization: { id: string; key: string }
/** It lives through all of it. */
let witness: string
let witnessGateway: GatewayProcess
/** An instance whose worker was asked to stop during its start, and the outcome. */
let slow: {
  id: string
  pid: number
  ended: Promise<{ code: number | null; at: number; ms: number }>
  /** When another worker had it, and that worker's attempt. */
  taken: Promise<{ at: number; attempts: number }>
  /** The process of its gateway when that worker had seen its start through, and how often it was started. */
  seenThrough: Promise<{ pid: number; starts: number }>
}

/** How often an instance's gateway was started, by what it wrote. */
const startsOf = async (id: string): Promise<number> =>
  (await sandboxes.outputOf(id)).split('\n').filter((line) => line === 'starting').length

const call = (...[method, path, options]: Parameters<Replica['call']>) =>
  api.call(method, path, { key: organization.key, ...options })
const statusOf = async (id: string): Promise<string> => (await call('GET', `/v1/instances/${id}/status`)).body.status
const isRunning = (id: string) => until(`${id} to run`, async () => (await statusOf(id)) === 'running', settlesWithinMs)

async function create(name: string): Promise<string> {
  const { status, body } = await call('POST', '/v1/instances', { body: { name } })
  if (status !== 201) throw new Error(`create: ${status} ${JSON.stringify(body)}`)
  return body.id
}

async function rowOf(id: string): Promise<pg.QueryResultRow> {
  const { rows } = await database.pool.query(
    'SELECT step, attempts, lease_token, lease_until > now() AS is_leased FROM instances WHERE id = $1',
    [id],
  )
  return present(rows[0])
}

async function gatewayOf(id: string): Promise<GatewayProcess> {
  const gateway = await findGateway(id)
  if (!gateway) throw new Error(`${id} has no gateway`)
  return gateway
}
const gatewayPid = async (id: string) => (await gatewayOf(id)).pid

beforeAll(async () => {
  database = await cloneDatabase()
  provider = await startStubProvider()
  installation = await makeInstallation(database.connection)
  installation.env = {
    ...(await installStub(installation.dataDir)),
    ANTHROPIC_BASE_URL: provider.url,
    RELAY_URL: provider.url,
    DRAIN_SECONDS: String(turnDrainSeconds),
  }
  sandboxes = sandboxesSeen(installation.dataDir)
  talker = await startStubGateway((response, request) => {
    if (request.body.stream) startStream(response).write(streamHead)
    else if (JSON.stringify(request.body).includes(soon)) {
      setTimeout(() => answerJson(200, responseObject())(response, request), soonMs)
    }
  })
  api = await startReplica(installation)
  organization = await signUp(api)
  const first = await startRole('worker', installation)
  extra.push(first)
  witness = await create('witness')
  await isRunning(witness)
  witnessGateway = await gatewayOf(witness)

  provider.behave({ readyAfterMs: slowStartMs, progressEveryMs: 200 })
  const id = await create('slow')
  await until('its gateway', async () => (await rowOf(id)).step === 'checkHealth', settlesWithinMs)
  await until('its start', () => startsOf(id).catch(() => 0))
  provider.behave({})
  worker = await startRole('worker', installation)
  const toldAt = performance.now()
  const { lease_token: token } = await rowOf(id)
  // The other tests run while it drains.
  const ended = first.kill('SIGTERM').then((code) => ({ code, at: performance.now(), ms: performance.now() - toldAt }))
  const isTaken = async () => {
    const { lease_token, is_leased, attempts } = await rowOf(id)
    return lease_token !== token && is_leased ? { at: performance.now(), attempts } : null
  }
  const taken = until('another worker to take it', isTaken, workerDrainMs + 30_000)
  const seenThrough = taken.then(async () => {
    // The stub takes no configuration, so this is as far as it comes.
    await until('the next step', async () => (await rowOf(id)).step === 'patchConfig', slowStartMs + settlesWithinMs)
    return { pid: await gatewayPid(id), starts: await startsOf(id) }
  })
  for (const promise of [ended, taken, seenThrough]) promise.catch(() => {})
  slow = { id, pid: await gatewayPid(id), ended, taken, seenThrough }
})

afterEach(() => {
  for (const { response } of talker.received) response.destroy()
  talker.received.length = 0
})

afterAll(async () => {
  await Promise.allSettled([slow?.ended, slow?.taken])
  await Promise.all([api, worker, ...extra].map((started) => started?.kill('SIGKILL')))
  await Promise.all(proxies.map((proxy) => proxy.close()))
  if (installation) await removeDataDir(installation.dataDir)
  await provider?.close()
  await talker?.close()
  await database?.drop()
})

/** Another API process, which the test ends, behind a proxy before its database. */
async function startDoomed() {
  const { host = '', port } = database.connection
  const target = host.startsWith('/') ? { path: `${host}/.s.PGSQL.${port}` } : { host, port: port ?? 5432 }
  const proxy = await openProxy(target)
  proxies.push(proxy)
  const url = databaseUrl({ ...database.connection, host: proxy.host, port: proxy.port })
  const replica = await startReplica({ ...installation, databaseUrl: url })
  extra.push(replica)
  const asked = await replica.call('GET', '/v1/organization', { key: organization.key })
  expect(asked.status).toBe(200)
  return { replica, proxy }
}

const named = async (name: string): Promise<string[]> =>
  (await database.pool.query('SELECT id FROM instances WHERE name = $1', [name])).rows.map(({ id }) => id)

const post = (replica: Pick<Replica, 'call'>, name: string, key?: string) =>
  replica.call('POST', '/v1/instances', {
    key: organization.key,
    body: { name },
    headers: key === undefined ? {} : { 'idempotency-key': key },
  })

/** There once, worked on, and with one gateway. */
async function expectMadeOnce(name: string): Promise<void> {
  const ids = await named(name)
  expect(ids).toHaveLength(1)
  await isRunning(present(ids[0]))
  expect(await startsOf(present(ids[0]))).toBe(1)
  expect((await call('DELETE', `/v1/instances/${ids[0]}`)).status).toBe(204)
}

test('F4: an API killed after the commit and before its answer: the retry with the same key gets that instance', async () => {
  const { replica, proxy } = await startDoomed()
  const hold = proxy.holdWhen('commit\0', 'to server', { after: 'request' })
  const answer = post(replica, 'committed', 'key-1').catch((error: unknown) => error)
  await hold.held
  const [id] = await until('the commit', async () =>
    (await named('committed')).length > 0 ? named('committed') : null,
  )
  await replica.kill('SIGKILL')
  expect(await answer).toBeInstanceOf(Error)
  const retries = [await post(api, 'committed', 'key-1'), await post(api, 'committed', 'key-1')]
  for (const { status, headers, body } of retries) {
    expect([status, headers['idempotent-replayed'], body.id]).toEqual([201, 'true', id])
    expect(body).toMatchObject({ name: 'committed', status: 'provisioning' })
  }
  expect(present(retries[1]).body).toEqual(present(retries[0]).body)
  await expectMadeOnce('committed')
})

test('F4: an API killed before the commit has made nothing, and the retry with the same key makes it', async () => {
  const { replica, proxy } = await startDoomed()
  const hold = proxy.holdWhen('commit\0', 'to server')
  const answer = post(replica, 'not committed', 'key-2').catch((error: unknown) => error)
  await hold.held
  await replica.kill('SIGKILL')
  expect(await answer).toBeInstanceOf(Error)
  expect(await named('not committed')).toEqual([])
  hold.drop()
  const retry = await post(api, 'not committed', 'key-2')
  expect([retry.status, retry.headers['idempotent-replayed']]).toEqual([201, undefined])
  expect(await named('not committed')).toEqual([retry.body.id])
  await expectMadeOnce('not committed')
})

test('F4: an API killed before its answer and before it enqueued the row, without a key: the instance is there once and is worked on', async () => {
  const { replica, proxy } = await startDoomed()
  const hold = proxy.holdWhen('INSERT INTO instances', 'to server', { after: 'request' })
  const answer = post(replica, 'without a key').catch((error: unknown) => error)
  await hold.held
  await until('the commit', async () => (await named('without a key')).length > 0)
  await replica.kill('SIGKILL')
  expect(await answer).toBeInstanceOf(Error)
  await expectMadeOnce('without a key')
})

test('F3: an API that is asked to stop accepts no more requests, lets open turns end, cuts those that do not, and leaves the rest to other replicas', async () => {
  const { replica } = await startDoomed()
  const id = await create('talker')
  await isRunning(id)
  const pid = await gatewayPid(id)
  await database.pool.query('UPDATE instances SET endpoint = $2 WHERE id = $1', [id, JSON.stringify(talker.endpoint)])
  const base = `/v1/instances/${id}`
  const headers = { authorization: `Bearer ${organization.key}`, 'content-type': 'application/json' }
  const turn = (stream: boolean, input = 'hello') => JSON.stringify({ model: 'openclaw', input, stream })

  const streamed = await fetch(`${replica.url}${base}/responses`, { method: 'POST', headers, body: turn(true) })
  const plain = replica.call('POST', `${base}/session/other/responses`, { key: organization.key, body: turn(false) })
  const finishing = replica.call('POST', `${base}/session/third/responses`, {
    key: organization.key,
    body: turn(false, soon),
  })
  const polled = replica.call('GET', `${base}/status?wait=stopped`, { key: organization.key })
  // One who has more to send, and one who never will.
  const bodies = ['{"name":"renamed"', '{'].map((begin) => {
    const sending = httpRequest(`${replica.url}${base}`, { method: 'PATCH', headers })
    sending.write(begin)
    const answer = once(sending, 'response').then(([message]) => message as IncomingMessage)
    answer.catch(() => {})
    sending.on('error', () => {})
    return { sending, answer }
  })
  await until('the turns', () => talker.received.length === 3)

  const toldAt = performance.now()
  const ended = replica.kill('SIGTERM').then((code) => ({ code, ms: performance.now() - toldAt }))
  let others = 0
  const rest = (async () => {
    for (let isOver = false; !isOver; others += 1) {
      isOver = await Promise.race([ended.then(() => true), sleep(50).then(() => false)])
      expect((await call('GET', '/v1/organization')).status).toBe(200)
    }
  })()
  expect((await polled).status).toBe(200)
  expect(performance.now() - toldAt, 'waits end at once').toBeLessThan(1000)
  const isRefused = () =>
    fetch(`${replica.url}/v1/organization`, { headers }).then(
      () => false,
      () => true,
    )
  // The waits have ended before the last connection is accepted.
  await until('further requests to be refused', isRefused, 1000)
  expect((await finishing).status, 'a turn that ends in time').toBe(200)
  present(bodies[0]).sending.end('}')
  const finished = await present(bodies[0]).answer
  finished.resume()
  expect(finished.statusCode).toBe(200)
  expect(performance.now() - toldAt, 'meanwhile the others go on').toBeLessThan(turnDrainSeconds * 1000)
  expect(await streamed.text()).toMatch(/event: response\.failed\ndata: .*shutting down.*\n\ndata: \[DONE\]\n\n$/)
  const refused = await plain
  expect([refused.status, refused.headers['x-should-retry']]).toEqual([503, 'false'])
  const cutAfterMs = performance.now() - toldAt
  expect(cutAfterMs).toBeGreaterThan(turnDrainSeconds * 1000 - 100)
  expect(cutAfterMs).toBeLessThan(turnDrainSeconds * 1000 + 1500)
  await expect(present(bodies[1]).answer).rejects.toThrow()
  const { code, ms } = await ended
  expect(code).toBe(0)
  expect(ms).toBeLessThan(apiDrainMs + 15_000)
  await rest
  expect(others).toBeGreaterThan(10)
  expect(talker.received.map(({ abortedAt }) => abortedAt !== undefined).sort()).toEqual([false, true, true])
  expect((await call('GET', base)).body).toMatchObject({ name: 'renamed', status: 'running' })
  expect(await gatewayPid(id), 'the sandbox is untouched').toBe(pid)
  await call('DELETE', base)
})

test('F3: a worker that is asked to stop in the middle of a step releases its lease, and another continues immediately', async () => {
  const { id, pid, ended, taken, seenThrough } = slow
  const { code, at, ms } = await ended
  expect(code).toBe(0)
  expect(ms).toBeGreaterThan(workerDrainMs - 1000)
  expect(ms).toBeLessThan(workerDrainMs + 10_000)
  const next = await taken
  console.info(`taken ${Math.round(next.at - at)} ms after the other had ended`)
  expect(next.at - at).toBeLessThan(goesOnWithinMs)
  expect(next.attempts, 'a deploy is no failed attempt').toBe(1)
  expect(await seenThrough, 'the sandbox is untouched').toEqual({ pid, starts: 1 })
  expect((await call('DELETE', `/v1/instances/${id}`)).status).toBe(204)
})

test('I8: an agent’s own connection survives that the API and workers are killed, deployed, or stopped', async () => {
  /** Without the address of the API, which has another port each time. */
  const shown = async () => {
    const { gateway_url: _, ...instance } = (await call('GET', `/v1/instances/${witness}`)).body
    return { instance, events: (await call('GET', `/v1/instances/${witness}/events`)).body }
  }
  const before = await shown()
  for (const signal of ['SIGKILL', 'SIGTERM'] as const) {
    const toldAt = performance.now()
    await Promise.all([api.kill(signal), worker.kill(signal)])
    expect(performance.now() - toldAt, 'without work nothing is waited for').toBeLessThan(workerDrainMs - 5000)
    ;[api, worker] = await Promise.all([startReplica(installation), startRole('worker', installation)])
  }
  // A worker has checked for drift once when it reports that it runs.
  const channel = present(provider.channels.get(witnessGateway.token))
  expect(channel).toMatchObject({ connections: 1, isOpen: true })
  expect(await gatewayPid(witness)).toBe(witnessGateway.pid)
  console.info(`longest silence ${Math.round(channel.longestSilenceMs)} ms`)
  expect(channel.longestSilenceMs).toBeLessThan(15_000)
  expect(performance.now() - channel.heardAt).toBeLessThan(15_000)
  expect(await shown()).toEqual(before)
})
