import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { isDeepStrictEqual } from 'node:util'
import { sql } from 'drizzle-orm'
import { Redis } from 'ioredis'
import type pg from 'pg'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { instances } from '#database/schema.ts'
import { defaultTimeouts } from '#lifecycle/attempt/step.ts'
import type { QueueBackend } from '#lifecycle/queue/queue-backend.ts'
import { defaultIntervals } from '#lifecycle/worker.ts'
import { api, signUp, waitForStatus } from '../support/api-client.ts'
import { newSecret } from '../support/canary/secrets.ts'
import { startFakeCloud } from '../support/fake-cloud.ts'
import { FakeDriver } from '../support/fake-driver.ts'
import { startFakeGateway } from '../support/fake-gateway.ts'
import { present } from '../support/present.ts'
import { hasQueue, queueKinds } from '../support/queue-backends.ts'
import { watchStalls } from '../support/stalls.ts'
import { openProxy, type TcpProxy } from '../support/tcp-proxy.ts'
import { openTestChowder, type TestChowder } from '../support/test-chowder.ts'
import { cloneDatabase, type TestDatabase } from '../support/test-database.ts'
import { until } from '../support/until.ts'
import { databaseUrl } from './api-replicas.ts'
import { type Crash, superviseReplica } from './replicas.ts'

/** The length of the outage: 60 s in the long run, less in CI. */
const outageMs = Number(process.env.CHAOS_AWAY_SECONDS ?? 8) * 1000
/** The limit for a request during the outage: less than the 5 s of one that waits for the queue. */
const answersWithinMs = 4500
/** From the queue's return until all rows are settled: the new connection, the sweep, and the work itself. */
const doneWithinMs = 2000 + defaultIntervals.sweepEveryMs + 8000
/** The limit of all waits, for slow machines. */
const waitLimitMs = 60_000
/** A connection that was cut in silence is given up, and then as above. */
const noticedWithinMs = 20_000 + doneWithinMs

/** The server of the queue, under the control of a test. Chowder reaches it only through `proxy`. */
interface Carrier {
  proxy: TcpProxy
  backend: QueueBackend
  /** Takes all that is in the queue. */
  empty(): Promise<void>
  /** Ends, and is there again at once, with nothing in it. */
  restartEmpty(): Promise<void>
  leave(): Promise<void>
  comeBack(): Promise<void>
  close(): Promise<void>
}

/** A Redis of the test's own, that keeps nothing. */
async function openRedis(): Promise<Carrier> {
  const folder = await mkdtemp(join(tmpdir(), 'chowder-redis-'))
  const path = join(folder, 'redis.sock')
  const startServer = async () => {
    const args = ['--port', '0', '--unixsocket', path, '--save', '', '--appendonly', 'no', '--dir', folder]
    const server = spawn('redis-server', args, { stdio: 'ignore' })
    await once(server, 'spawn')
    return { server, ended: once(server, 'exit') }
  }
  const direct = new Redis(path, { retryStrategy: () => 50, maxRetriesPerRequest: null })
  direct.on('error', () => {})
  let running: Awaited<ReturnType<typeof startServer>> | null = await startServer()
  const leave = async () => {
    running?.server.kill('SIGKILL')
    await running?.ended
    running = null
  }
  const comeBack = async () => {
    running = await startServer()
    await direct.ping()
  }
  await direct.ping()
  const proxy = await openProxy({ path })
  return {
    proxy,
    backend: { kind: 'redis', url: `redis://${proxy.host}:${proxy.port}` },
    empty: async () => void (await direct.flushall()),
    async restartEmpty() {
      await leave()
      await comeBack()
    },
    leave,
    comeBack,
    async close() {
      await proxy.close()
      direct.disconnect()
      await leave()
      await rm(folder, { recursive: true, force: true })
    },
  }
}

const queueApplication = 'the queue under test'

/** The way to a database through a proxy before it. */
async function proxied(connection: pg.PoolConfig): Promise<{ proxy: TcpProxy; connection: pg.PoolConfig }> {
  if (connection.connectionString !== undefined) {
    const url = new URL(connection.connectionString)
    const proxy = await openProxy({ host: url.hostname, port: Number(url.port || 5432) })
    url.host = `${proxy.host}:${proxy.port}`
    return { proxy, connection: { ...connection, connectionString: url.href } }
  }
  const { host = 'localhost', port = 5432 } = connection
  const proxy = await openProxy(host.startsWith('/') ? { path: join(host, `.s.PGSQL.${port}`) } : { host, port })
  return { proxy, connection: { ...connection, host: proxy.host, port: proxy.port } }
}

/** The queue in the database. Only the queue's own connections go through the proxy: everything else goes on. */
async function openQueueTables({ connection: direct, pool }: TestDatabase): Promise<Carrier> {
  const { proxy, connection } = await proxied(direct)
  const empty = async () => void (await pool.query('TRUNCATE bullmq.job CASCADE'))
  return {
    proxy,
    backend: { kind: 'postgres', connection: { ...connection, application_name: queueApplication } },
    empty,
    async restartEmpty() {
      await pool.query('SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1', [
        queueApplication,
      ])
      await empty()
    },
    leave: async () => proxy.cut(),
    comeBack: async () => proxy.heal(),
    close: () => proxy.close(),
  }
}

/** The two queues at the same time, each test of one after the other. */
const inTurn = { concurrent: false }

const gateway = await startFakeGateway({})
afterAll(() => gateway.close())

describe.concurrent.each(queueKinds)('on the %s queue', (kind) => {
  describe.runIf(hasQueue(kind))('a lost job costs only a delay', () => {
    let database: TestDatabase
    let carrier: Carrier
    let driver: FakeDriver
    let chowder: TestChowder
    let key: string

    // It is unreachable from the start. Without its database Chowder does not even start, so there it is away from the
    // moment on in which the worker makes its own first connection.
    beforeAll(async () => {
      database = await cloneDatabase()
      carrier = kind === 'redis' ? await openRedis() : await openQueueTables(database)
      if (kind === 'redis') await carrier.leave()
      driver = new FakeDriver(() => gateway.endpoint)
      chowder = await openTestChowder({
        sandboxes: driver,
        database,
        queue: () => carrier.backend,
        intervals: defaultIntervals,
        timeouts: defaultTimeouts, // its gateways are in this process, and hang when that is held up
        defaultTier: 'whale',
      })
      await chowder.queue.check()
      if (kind === 'postgres') await carrier.leave()
      await chowder.startWorker(4)
      key = (await chowder.signUp()).key
    })
    afterAll(async () => {
      await chowder?.close()
      await carrier?.close()
      await database?.drop()
    })

    const call = (method: 'GET' | 'POST' | 'PATCH' | 'DELETE', path: string, body?: unknown, as = key) =>
      chowder.call(method, `/v1/instances${path}`, { key: as, ...(body !== undefined && { body }) })

    /** Asks, and expects to be answered as if nothing were wrong. */
    async function askSoon(
      method: 'POST' | 'PATCH' | 'DELETE',
      path: string,
      status: number,
      body?: unknown,
      as = key,
    ) {
      const askedAt = performance.now()
      const answer = await call(method, path, body, as)
      expect(answer.status, JSON.stringify(answer.body)).toBe(status)
      expect(performance.now() - askedAt, `${method} is answered at once`).toBeLessThan(answersWithinMs)
      return answer.body
    }

    /** Whose each instance is, by its key. */
    const owners = new Map<string, string>()
    async function create(name: string, as = key): Promise<string> {
      const { id } = await askSoon('POST', '', 201, { name }, as)
      owners.set(id, as)
      return id
    }
    const isAnswering = () => chowder.queue.ping(AbortSignal.timeout(4000))

    async function isAtRest(id: string, status: string): Promise<boolean> {
      const { body } = await call('GET', `/${id}`, undefined, owners.get(id))
      return body.status === status && body.step === null
    }

    /** All of them run within the time, each with one sandbox whose gateway was started once. */
    async function expectRunning(ids: string[], withinMs: number): Promise<void> {
      const since = performance.now()
      const stalledMs = watchStalls()
      for (const id of ids) await until(`${id} to run`, () => isAtRest(id, 'running'), waitLimitMs)
      expect(performance.now() - since - stalledMs(), 'the delay').toBeLessThan(withinMs)
      for (const id of ids) expect([driver.creations.get(id), driver.starts.get(id)]).toEqual([1, 1])
    }

    /**
     * Creates 50, of many organizations, and does something to the queue when some of them run and others are due.
     */
    async function inTheMiddleOfFifty(act: () => Promise<void>): Promise<void> {
      driver.onCall = (method) => (method === 'create' ? sleep(200) : undefined)
      const before = driver.starts.size
      const keys = await Promise.all(Array.from({ length: 10 }, async () => (await chowder.signUp()).key))
      const ids = await Promise.all(
        Array.from({ length: 50 }, (_, index) => create(`one of fifty ${index}`, keys[index % keys.length])),
      )
      await until('some of them to be started', () => driver.starts.size >= before + 4)
      // While a connection is being replaced, no job can be counted.
      await until('a job to wait', async () => (await chowder.queue.countWaiting().catch(() => 0)) > 0)
      const isFree = sql`observed_generation < generation AND lease_until < now()`
      expect(await database.db.$count(instances, isFree), 'others wait').toBeGreaterThan(10)
      await act()
      await expectRunning(ids, doneWithinMs)
      driver.onCall = () => {}
    }

    test(
      'F8: a create is accepted while the queue is unreachable from the start, and is carried out',
      inTurn,
      async () => {
        expect(await isAnswering()).toBe(false)
        const ids = [await create('before there is a queue'), await create('and another')]
        await carrier.comeBack()
        await expectRunning(ids, doneWithinMs)
        await until('the queue to answer', isAnswering, doneWithinMs)
      },
    )

    test('F7: a flushed queue costs a delay, not an instance', inTurn, () => inTheMiddleOfFifty(() => carrier.empty()))

    test('F7: a queue that restarts without its data costs a delay, not an instance', inTurn, () =>
      inTheMiddleOfFifty(() => carrier.restartEmpty()),
    )

    test(
      `F7: requests during an outage of the queue of ${outageMs / 1000} s are accepted and carried out`,
      inTurn,
      async () => {
        const [stopped = '', deleted = ''] = await Promise.all([create('to stop'), create('to delete')])
        await expectRunning([stopped, deleted], doneWithinMs)
        await carrier.leave()
        const leftAt = performance.now()
        const created = [await create('requested during the outage')]
        const stopping = call('POST', `/${stopped}/stop`)
        await askSoon('DELETE', `/${deleted}`, 204)
        await askSoon('PATCH', `/${created[0]}`, 200, { name: 'renamed' })
        expect(await isAnswering()).toBe(false)
        await sleep(Math.max(0, outageMs - (performance.now() - leftAt)))
        created.push(await create('asked for at its end'))

        await carrier.comeBack()
        const backAt = performance.now()
        const stalledMs = watchStalls()
        await expectRunning(created, doneWithinMs)
        const { status, body } = await stopping
        expect([200, 202], JSON.stringify(body)).toContain(status)
        await until('it to be stopped', () => isAtRest(stopped, 'stopped'), waitLimitMs)
        await until('the other to be destroyed', () => !driver.sandboxes.has(deleted), waitLimitMs)
        expect(performance.now() - backAt - stalledMs()).toBeLessThan(doneWithinMs)
        expect(driver.sandboxes.get(stopped)?.running).toBe(false)
      },
    )

    test('F8: a create is accepted while the queue is half-open, and is carried out', inTurn, async () => {
      carrier.proxy.freeze()
      const ids = [await create('while nothing passes')]
      expect(await isAnswering()).toBe(false)
      // Longer than the timeout of one enqueue.
      await sleep(6000)
      ids.push(await create('and nothing has passed for long'))
      carrier.proxy.heal()
      await expectRunning(ids, doneWithinMs)
    })

    test(
      'F8: connections to the queue that were cut in silence are given up, and what waited comes true',
      inTurn,
      async () => {
        await expectRunning([await create('before')], doneWithinMs)
        const holds = Array.from({ length: carrier.proxy.connections() }, () => carrier.proxy.holdWhen('', 'to server'))
        const ids = [await create('into the silence')]
        // All that is used within this time is dead; connections that are made later are not.
        await sleep(6000)
        const caught = await Promise.all(
          holds.map((hold) => Promise.race([hold.held.then(() => true), sleep(0).then(() => false)])),
        )
        holds.forEach((hold, index) => {
          if (!caught[index]) hold.release()
        })
        expect(caught.filter(Boolean).length, 'connections that are dead').toBeGreaterThan(0)
        await expectRunning(ids, noticedWithinMs)
        for (const hold of holds) hold.drop()
      },
    )

    test('F8: a worker takes every due row', inTurn, async () => {
      const { rows } = await database.pool.query('SELECT id FROM instances WHERE observed_generation < generation')
      expect(rows).toEqual([])
    })
  })
})

describe.concurrent('Chowder with REDIS_URL, as an operator runs it', () => {
  test.runIf(hasQueue('redis'))(
    'F8: starts and accepts requests without Redis, reports it at /readyz, and carries them out when Redis is reachable',
    async () => {
      const folder = await mkdtemp(join(tmpdir(), 'chowder-queue-'))
      await chmod(folder, 0o711)
      const database = await cloneDatabase()
      const redis = await openRedis()
      await redis.leave()
      const cloud = await startFakeCloud({ bootMs: 100 })
      const crashes: Crash[] = []
      const env = {
        PATH: process.env.PATH ?? '',
        HOME: folder,
        PORT: '0',
        RELAY_PORT: '0',
        CLOUD_URL: cloud.url,
        CHOWDER_DATA_DIR: join(folder, 'data'),
        CHOWDER_SECRET_KEY: Buffer.alloc(32, 7).toString('base64'),
        DATABASE_URL: databaseUrl(database.connection),
        REDIS_URL: redis.backend.kind === 'redis' ? redis.backend.url : '',
        ANTHROPIC_BASE_URL: 'http://127.0.0.1:9',
      }
      const replicas = (['api', 'worker'] as const).map((role) =>
        superviseReplica({ role, env, logFile: join(folder, `${role}.log`), crashes }),
      )
      try {
        await until('Chowder to run', () => replicas.every((replica) => replica.isRunning()), 60_000)
        const base = present(present(replicas[0]).url())
        const ready = async () => {
          const { status, body } = await api(base).get('/readyz')
          return [status, body.status, body.checks.database, body.checks.queue]
        }
        await until('it to be degraded', async () => isDeepStrictEqual(await ready(), [200, 'degraded', true, false]))
        const key = await signUp(base, newSecret('provider key', 'sk-'))
        const client = api(base, key)
        const create = async (body: object): Promise<string> => {
          const askedAt = performance.now()
          const answer = await client.post('/v1/instances', body)
          expect(answer.status, JSON.stringify(answer.body)).toBe(201)
          expect(performance.now() - askedAt).toBeLessThan(answersWithinMs)
          return answer.body.id
        }
        const first = await create({ name: 'without Redis' })
        await redis.comeBack()
        await waitForStatus(client, first, 'running', waitLimitMs)
        await until('it to be ready', async () => (await ready())[1] === 'ready', 15_000)

        redis.proxy.freeze()
        await until('it to be degraded', async () => isDeepStrictEqual(await ready(), [200, 'degraded', true, false]))
        const second = await create({ name: 'while Redis is half-open' })
        redis.proxy.heal()
        await waitForStatus(client, second, 'running', waitLimitMs)
        await until('it to be ready', async () => (await ready())[1] === 'ready', 15_000)
        expect(crashes, await readFile(join(folder, 'worker.log'), 'utf8')).toEqual([])
        expect(cloud.history.filter(({ what }) => what === 'created').map(({ id }) => id)).toEqual([first, second])
      } finally {
        await Promise.all(replicas.map((replica) => replica.close()))
        await cloud.close()
        await redis.close()
        await database.drop()
        await rm(folder, { recursive: true, force: true })
      }
    },
    300_000,
  )
})
