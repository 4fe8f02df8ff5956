import { randomUUID } from 'node:crypto'
import { on, once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'
import { levels } from 'pino'
import { Agent, type Dispatcher, request } from 'undici'
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest'
import { WebSocket } from 'ws'
import { defaultMaintenance, maintenanceTasks } from '#composition/maintenance.ts'
import { connectLimits } from '#http/rate-limit.ts'
import { poll } from '#platform/poll.ts'
import type { SandboxSpec } from '#sandbox/driver.ts'
import { newSecret } from '../support/canary/secrets.ts'
import { FakeDriver } from '../support/fake-driver.ts'
import { type FakeGateway, startFakeGateway } from '../support/fake-gateway.ts'
import { present } from '../support/present.ts'
import { hasQueue, queueBackend, type queueKinds } from '../support/queue-backends.ts'
import { openTestChowder, type TestChowder } from '../support/test-chowder.ts'
import { until } from '../support/until.ts'
import { type Footprint, measureFootprint } from './footprint.ts'

const soaks: { kind: (typeof queueKinds)[number]; cycles: number; tags: string[] }[] = [
  { kind: 'postgres', cycles: 40, tags: [] },
  { kind: 'redis', cycles: 10_000, tags: ['long'] },
]
const lanes = 10
/** Every second lane deletes its organization whole, with what it has, after so many cycles of a half at most. */
const cyclesByOrganization = 100
/** A turn has two pieces of text: so it takes twice as long. */
const pieceAfterMs = 10
const requestTimeoutMs = 60_000
const intervals = { sweepEveryMs: 500, driftEveryMs: 500 }
/** Of the pool of a test's database. */
const mostConnections = 10
const bullmqEvents = 10_100
/**
 * What the second half may add to the first: connections to PostgreSQL come and go, and each has a timer while it is
 * idle, and some listeners.
 */
const moreTimers = 20
const moreDescriptors = 10
const moreListeners = 100
/** Caches keep the last so many organizations, keys and the like. */
const entriesByOrganization = 3
/** Of keys that nobody has: the cache holds the last so many, also when they are stale. */
const cachedUnknownKeys = 1000
/** Of instances that have had a turn: likewise. */
const cachedTurns = 10_000
/** In KiB: what the process has loaded and compiled meanwhile, and what each agent may leave. */
const moreMemory = 8 * 1024
const memoryByAgent = 0.25
/** The keys of a queue in Redis when it is empty. */
const queueKeys = ['events', 'id', 'marker', 'meta', 'stalled-check']
const anthropicKey = newSecret('provider key', 'sk-')

/** As a platform would: without the functions, which hold on to all that the worker has at hand. */
class SoakDriver extends FakeDriver {
  override create(spec: SandboxSpec, signal: AbortSignal) {
    return super.create({ ...spec, command: () => [], env: () => ({}) }, signal)
  }

  forget(): void {
    this.heal()
    this.calls.length = 0
    this.creations.clear()
    this.starts.clear()
  }
}

interface Organization {
  id: string
  key: string
}

type Rows = Record<string, number>

interface Stock {
  sandboxes: number
  rows: Rows
  connections: number
  redis: { queue: string[]; lasting: string[] }
  errors: string[]
  footprint: Footprint
}

interface Answer {
  status: number
  // biome-ignore lint/suspicious/noExplicitAny: a test reads what it expects
  body: any
}

describe.each(soaks)('$cycles agents that come and go, with the queue in $kind', ({ kind, cycles, tags }) => {
  let gateway: FakeGateway
  let driver: SoakDriver
  let chowder: TestChowder
  let url: string
  let redis: Redis | null = null
  let limits: Redis | null = null
  let client = new Agent()
  const warnings: Error[] = []
  const noteWarning = (warning: Error) => void warnings.push(warning)
  const made = { instances: 0, organizations: 0, turns: 0, left: 0, revokedKeys: 0 }

  beforeAll(async () => {
    if (!hasQueue(kind)) return
    process.on('warning', noteWarning)
    gateway = await startFakeGateway({})
    gateway.behaviour.pauseMs = pieceAfterMs
    gateway.methods['sessions.delete'] = () => ({ ok: true })
    driver = new SoakDriver(() => gateway.endpoint)
    if (kind === 'redis') {
      const redisUrl = present(inject('redisUrl'))
      redis = new Redis(redisUrl)
      limits = connectLimits(redisUrl)
    }
    chowder = await openTestChowder({
      sandboxes: driver,
      defaultTier: 'whale',
      intervals,
      maintenance: defaultMaintenance,
      queue: (database) => queueBackend(kind, database),
      ...(limits && {
        limits: { requestsPerMinute: 1e6, organizationRequestsPerMinute: 1e6, signupsPerHour: 1e6, redis: limits },
      }),
    })
    chowder.deps.log.level = 'warn' // its lines stay in this process's memory
    url = await chowder.app.listen({ port: 0, host: '127.0.0.1' })
    await chowder.startWorker()
  })
  afterAll(async () => {
    process.off('warning', noteWarning)
    await client.destroy()
    await chowder?.close()
    await gateway?.close()
    for (const connection of [redis, limits]) connection?.disconnect()
  })

  const send = (
    method: Dispatcher.HttpMethod,
    path: string,
    key: string | null,
    body?: unknown,
    { headers = {}, signal = AbortSignal.timeout(requestTimeoutMs) }: { headers?: object; signal?: AbortSignal } = {},
  ) =>
    request(url + path, {
      dispatcher: client,
      method,
      headers: {
        ...(key !== null && { authorization: `Bearer ${key}` }),
        ...(body !== undefined && { 'content-type': 'application/json' }),
        ...headers,
      },
      ...(body !== undefined && { body: JSON.stringify(body) }),
      signal,
    })

  async function call(wanted: number, ...asked: Parameters<typeof send>): Promise<Answer> {
    const { statusCode: status, body } = await send(...asked)
    const text = await body.text()
    if (status !== wanted) throw new Error(`${asked[0]} ${asked[1]}: ${status} ${text}`)
    return { status, body: text === '' ? undefined : JSON.parse(text) }
  }

  async function signUp(): Promise<Organization> {
    const { body } = await call(201, 'POST', '/v1/organization/signup', null, { name: 'Acme' })
    const key: string = body.api_key
    await call(200, 'PATCH', '/v1/organization', key, { model_api_keys: { anthropic: anthropicKey } })
    made.organizations += 1
    return { id: body.organization.id, key }
  }

  async function create(key: string, headers = {}): Promise<string> {
    const body = { name: 'agent', metadata: { soak: 'yes' }, instructions: 'Be brief.' }
    const created = await call(201, 'POST', '/v1/instances', key, body, { headers })
    made.instances += 1
    return created.body.id
  }

  const untilRuns = async (key: string, id: string) => {
    const { body } = await call(200, 'GET', `/v1/instances/${id}/status?wait=running&timeout=60`, key)
    if (body.status !== 'running') throw new Error(`${id} is ${body.status}`)
  }

  const untilDestroyed = async (id: string) => {
    const isGone = await poll(() => !driver.sandboxes.has(id), { pauseMs: 5, timeoutMs: requestTimeoutMs })
    if (!isGone) throw new Error(`the sandbox of ${id} was not destroyed`)
  }

  const input = { model: 'openclaw', input: 'Hello' }
  const chat = { model: 'openclaw', messages: [{ role: 'user', content: 'Hello' }] }

  async function openSocket(key: string, id: string): Promise<WebSocket> {
    const socket = new WebSocket(`${url.replace('http', 'ws')}/v1/instances/${id}/responses`, {
      headers: { authorization: `Bearer ${key}` },
    })
    await once(socket, 'open')
    socket.send(JSON.stringify({ type: 'response.create', ...input }))
    return socket
  }

  /** Begins a turn and leaves it once its first bytes, if it has any before its end, have come. */
  async function leave(key: string, path: string, body: object): Promise<void> {
    made.left += 1
    const leaving = new AbortController()
    const isStream = 'stream' in body
    if (!isStream) setTimeout(() => leaving.abort(), pieceAfterMs)
    try {
      const answer = await send('POST', path, key, body, { signal: leaving.signal })
      expect(answer.statusCode).toBe(200)
      for await (const _chunk of answer.body) break
      leaving.abort()
    } catch (error) {
      if (!leaving.signal.aborted) throw error
    }
  }

  const turns: ((key: string, id: string) => Promise<unknown>)[] = [
    async (key, id) => {
      const { body } = await call(200, 'POST', `/v1/instances/${id}/responses`, key, input)
      expect(body.status).toBe('completed')
      await call(200, 'GET', `/v1/instances/${id}/responses/${body.id}`, key)
    },
    async (key, id) => {
      const { body } = await send('POST', `/v1/instances/${id}/session/one/responses`, key, { ...input, stream: true })
      expect(await body.text()).toMatch(/event: response\.completed\n[\s\S]*data: \[DONE\]\n\n$/)
    },
    async (key, id) => {
      const socket = await openSocket(key, id)
      for await (const [data] of on(socket, 'message'))
        if (JSON.parse(String(data)).type === 'response.completed') break
      socket.close()
      await once(socket, 'close')
    },
    async (key, id) => {
      const { body } = await call(200, 'POST', `/v1/instances/${id}/chat/completions`, key, chat)
      expect(body.choices).toHaveLength(1)
    },
    (key, id) => leave(key, `/v1/instances/${id}/responses`, { ...input, stream: true }),
    (key, id) => leave(key, `/v1/instances/${id}/chat/completions`, { ...chat, stream: true }),
    (key, id) => leave(key, `/v1/instances/${id}/responses`, input),
    async (key, id) => {
      made.left += 1
      const socket = await openSocket(key, id)
      await once(socket, 'message')
      socket.terminate()
    },
  ]

  const turn = (key: string, id: string, index: number) => {
    made.turns += 1
    return present(turns[index % turns.length])(key, id)
  }

  /** The gateway is one for all instances: two changes of its configuration at once would be a conflict. */
  let configured: Promise<unknown> = Promise.resolve()
  const configure = (key: string, id: string) => {
    configured = configured.then(() =>
      call(200, 'PATCH', `/v1/instances/${id}`, key, { openclaw_config: { 'session.dmScope': 'main' } }),
    )
    return configured
  }

  async function useScopedKey(key: string, id: string): Promise<void> {
    const { body } = await call(201, 'POST', '/v1/keys', key, {
      name: 'one',
      permissions: ['read'],
      instance_ids: [id],
    })
    await call(200, 'GET', `/v1/instances/${id}`, body.raw_key)
    await call(204, 'DELETE', `/v1/keys/${body.id}`, key)
    await call(401, 'GET', `/v1/instances/${id}`, body.raw_key)
    made.revokedKeys += 1
  }

  /** All gateways are taken for dead by one health check, or two. */
  async function holdUpHealthChecks(): Promise<void> {
    gateway.behaviour.health = 'failing'
    await sleep(250)
    gateway.behaviour.health = 'ok'
  }

  /** One agent, from its creation to its end. What is done now and then depends on the number of the cycle alone. */
  async function cycle({ key }: Organization, index: number): Promise<void> {
    const now = (every: number) => index % every === 0
    if (now(50)) driver.fail({ method: 'create', when: 'after' })
    const id = await create(key, now(3) ? { 'idempotency-key': randomUUID() } : {})
    const path = `/v1/instances/${id}`
    if (now(17)) {
      const wait = send('GET', `${path}/status?wait=running&timeout=60`, key, undefined, {
        signal: AbortSignal.timeout(5),
      })
      await wait.then(({ body }) => body.dump()).catch(() => {})
    }
    await untilRuns(key, id)
    await turn(key, id, index)
    if (now(4)) await call(200, 'PATCH', path, key, { metadata: { soak: 'still' } })
    if (now(10)) await configure(key, id)
    if (now(5)) {
      await call(204, 'PUT', `${path}/files/content`, key, { path: 'note.txt', content: 'a note' })
      await call(200, 'GET', `${path}/files/content?path=note.txt`, key)
    }
    if (now(11)) await useScopedKey(key, id)
    if (now(7)) {
      await call(200, 'POST', `${path}/stop`, key)
      // While it runs, a worker would change the configuration of the one gateway beside `configure`.
      await call(200, 'PATCH', path, key, { name: 'renamed' })
      await call(200, 'POST', `${path}/start`, key)
      await untilRuns(key, id)
      await turn(key, id, index + 1)
    }
    if (now(9)) {
      await query(`INSERT INTO channels (instance_id, channel, enabled, sealed_config) VALUES ($1, 'x', false, '')`, id)
      await query(`INSERT INTO skills (instance_id, name) VALUES ($1, 'x')`, id)
    }
    if (now(40)) await holdUpHealthChecks()
    if (now(60)) driver.fail({ method: 'destroy' })
    const running = now(6) ? send('POST', `${path}/responses`, key, { ...input, stream: true }) : null
    await call(204, 'DELETE', path, key)
    await running?.then(({ body }) => body.text()).catch(() => {})
    await untilDestroyed(id)
  }

  /** Deletes an organization whole, while one of its agents runs, one answers and one starts. */
  async function deleteOrganization({ key }: Organization): Promise<void> {
    const ids = [await create(key), await create(key)]
    for (const id of ids) await untilRuns(key, id)
    ids.push(await create(key, { 'idempotency-key': randomUUID() }))
    const stream = await send('POST', `/v1/instances/${ids[0]}/responses`, key, { ...input, stream: true })
    await call(204, 'DELETE', '/v1/organization', key, { name: 'Acme' })
    await stream.body.text().catch(() => {})
    for (const id of ids) await untilDestroyed(id)
  }

  /** The first ends all lanes. */
  const failures: unknown[] = []
  const noteFailure = (error: unknown) => void failures.push(error)

  /** So many cycles one after the other, and the organization that the lane has then. */
  async function runLane(lane: number, organization: Organization, first: number, count: number) {
    let own = organization
    for (let done = 1; done <= count && failures.length === 0; done += 1) {
      await cycle(own, first + done)
      if (lane % 2 === 0 || done % Math.min(count, cyclesByOrganization) > 0) continue
      await deleteOrganization(own)
      own = await signUp()
    }
    return own
  }

  const query = async (text: string, ...values: unknown[]) => (await chowder.database.pool.query(text, values)).rows

  const maintain = async () => {
    const parts = { ...chowder.deps, billing: null }
    for (const { run } of maintenanceTasks(parts, defaultMaintenance)) await run(AbortSignal.timeout(requestTimeoutMs))
  }

  /** Runs the product's own maintenance until all that has an age is older than it is kept. */
  async function age(): Promise<void> {
    await maintain()
    for (const _round of ['what is deleted', 'the events of that']) {
      await query(`UPDATE instances SET terminated_at = terminated_at - interval '31 days'`)
      await query(`UPDATE api_keys SET revoked_at = revoked_at - interval '366 days' WHERE revoked_at IS NOT NULL`)
      await query(`UPDATE idempotency_keys SET expires_at = expires_at - interval '25 hours'`)
      await query(`UPDATE turn_lines SET entered_at = entered_at - interval '2 hours'`)
      await query(`UPDATE events SET created_at = created_at - interval '91 days'`)
      await maintain()
    }
  }

  /** The rows of every table there is. */
  async function countRows(): Promise<Rows> {
    const tables = await query(
      `SELECT format('%I.%I', table_schema, table_name) AS name FROM information_schema.tables
       WHERE table_type = 'BASE TABLE' AND table_schema NOT IN ('pg_catalog', 'information_schema') ORDER BY 1`,
    )
    const counts = tables.map(async ({ name }) => [name, (await query(`SELECT count(*)::int FROM ${name}`))[0].count])
    return Object.fromEntries(await Promise.all(counts))
  }

  /** Waits until all is at rest, lets everything reach its age, and counts what is left. */
  async function takeStock(): Promise<Stock> {
    await until('all rows to be settled', async () => {
      return (await query('SELECT FROM instances WHERE observed_generation < generation')).length === 0
    })
    await until('no job to wait', async () => (await chowder.queue.countWaiting()) === 0)
    await client.close()
    client = new Agent()
    await age()
    gateway.disconnect()
    gateway.turns.length = 0
    gateway.calls.length = 0
    driver.forget()
    // The pool is full whenever this is counted.
    await Promise.all(Array.from({ length: mostConnections }, () => query('SELECT pg_sleep(0.3)')))
    const [database] = await query(
      `SELECT count(*)::int AS connections
       FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'`,
    )
    await until('all transactions and locks to end', async () => {
      const open = await query(
        `SELECT FROM pg_locks WHERE pid <> pg_backend_pid()
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`,
      )
      return open.length === 0
    })
    return {
      sandboxes: driver.sandboxes.size,
      rows: await countRows(),
      connections: database.connections,
      redis: await redisKeys(),
      errors: chowder.logged.splice(0).filter((line) => JSON.parse(line).level >= present(levels.values.error)),
      footprint: await measureFootprint(),
    }
  }

  /** This test's own keys in Redis without the id of the test, and those of limits that would stay for ever. */
  async function redisKeys() {
    if (!redis) return { queue: [], lasting: [] }
    const [{ name }] = await query('SELECT current_database() AS name')
    const prefix = `test-${name}:reconcile-instance:`
    const queue = (await redis.keys(`${prefix}*`)).map((key) => key.slice(prefix.length)).sort()
    const lasting: string[] = []
    for (const key of await redis.keys('chowder-limit-*')) if ((await redis.pttl(key)) === -1) lasting.push(key)
    return { queue, lasting }
  }

  /** What may be left of all that was made: each row has its reason. */
  const keptRows = (before: Rows, { rows }: Stock): Rows => ({
    ...before,
    // Emptied of all that a caller wrote: a sandbox that reappears is recognized by them.
    'public.instances': made.instances,
    'public.organizations': made.organizations,
    'public.api_keys': lanes,
    'public.provider_keys': lanes,
    // The id up to which events are queued for webhooks: the first run of the task writes it.
    'public.installation': 1,
    // For whoever listens, BullMQ keeps the last 10,000, and rows of its own settings, from its first use on.
    'bullmq.event': Math.min(rows['bullmq.event'] ?? 0, bullmqEvents),
    'bullmq.meta': Math.min(rows['bullmq.meta'] ?? 0, 3),
  })

  async function expectNothingLeft(before: Rows, stock: Stock): Promise<void> {
    expect(stock.errors, 'logged errors').toEqual([])
    expect(stock.sandboxes, 'sandboxes').toBe(0)
    expect(stock.rows, 'rows').toEqual(keptRows(before, stock))
    const unerased = `name <> '' OR metadata <> '{}' OR sealed_token <> '' OR sealed_instructions IS NOT NULL`
    expect(await query(`SELECT id FROM instances WHERE ${unerased}`), 'instances that are not erased').toEqual([])
    expect(
      stock.redis.queue.filter((key) => !queueKeys.includes(key)),
      'keys of the queue in Redis',
    ).toEqual([])
    expect(stock.redis.lasting, 'keys in Redis without an end').toEqual([])
    expect(stock.connections, 'connections to PostgreSQL').toBeLessThanOrEqual(2 * mostConnections)
  }

  test(`F30: ${cycles} agents are created, talked to and deleted, and nothing of them is left`, {
    timeout: 120_000 + cycles * 1000,
    tags,
  }, async ({ skip }) => {
    if (!hasQueue(kind)) skip('there is no Redis')
    const before = await countRows()
    let organizations = await Promise.all(Array.from({ length: lanes }, signUp))
    const count = cycles / 2 / lanes
    const run = async (firstOfHalf: number) => {
      const ended = organizations.map((own, lane) =>
        runLane(lane, own, firstOfHalf + lane * count, count).catch(noteFailure),
      )
      const living = await Promise.all(ended)
      if (failures.length > 0) throw failures[0]
      organizations = living.map(present)
      return takeStock()
    }
    const startedAt = performance.now()
    const middle = await run(0)
    const madeBefore = { ...made }
    await expectNothingLeft(before, middle)
    const end = await run(cycles / 2)
    await expectNothingLeft(before, end)

    const agents = made.instances - madeBefore.instances
    const grown = end.footprint.memory - middle.footprint.memory
    process.stderr.write(
      `F30, ${kind}: ${made.instances} agents and ${made.turns} turns in ${Math.round((performance.now() - startedAt) / 1000)} s, ${made.left} of them left; ${grown.toFixed(0)} KiB more after the last ${agents}\n${JSON.stringify({ middle, end })}\n`,
    )
    expect(warnings, 'warnings of Node').toEqual([])
    for (const [type, count] of Object.entries(end.footprint.descriptors)) {
      const mostOpen = (middle.footprint.descriptors[type] ?? 0) + moreDescriptors
      expect(count, `descriptors: ${type}`).toBeLessThanOrEqual(mostOpen)
    }
    expect(end.footprint.timers, 'timers').toBeLessThanOrEqual(middle.footprint.timers + moreTimers)
    expect(end.footprint.emitters, 'event emitters').toBeLessThanOrEqual(middle.footprint.emitters + moreListeners)
    expect(end.footprint.listeners, 'listeners').toBeLessThanOrEqual(middle.footprint.listeners + moreListeners)
    const revokedKeys = Math.min(made.revokedKeys - madeBefore.revokedKeys, cachedUnknownKeys)
    const organizationsBetween = made.organizations - madeBefore.organizations
    const talkedTo = Math.min(made.instances - madeBefore.instances, cachedTurns)
    const mostEntries = entriesByOrganization * organizationsBetween + agents / 50 + revokedKeys + talkedTo
    expect(
      end.footprint.entries - middle.footprint.entries,
      `entries of Maps and Sets; the largest were ${middle.footprint.largest.join(' | ')} and are ${end.footprint.largest.join(' | ')}`,
    ).toBeLessThanOrEqual(mostEntries)
    expect(grown, 'KiB of memory').toBeLessThan(moreMemory + memoryByAgent * agents)
  })
})
