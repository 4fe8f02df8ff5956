import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { pino } from 'pino'
import { afterEach, expect, test } from 'vitest'
import { createQueue } from '#lifecycle/queue/queue.ts'
import { openProxy } from '../../support/tcp-proxy.ts'
import { cloneDatabase } from '../../support/test-database.ts'
import { until } from '../../support/until.ts'

const ending: (() => unknown)[] = []

afterEach(async () => {
  for (const end of ending.splice(0).reverse()) await end()
})

/** The connection of a test database through a proxy. */
async function openDatabaseProxy() {
  const database = await cloneDatabase()
  ending.push(() => database.drop())
  const { host, port, connectionString, ...connection } = database.connection
  const url = connectionString === undefined ? null : new URL(connectionString)
  const proxy = await openProxy(
    url ? { host: url.hostname, port: Number(url.port || 5432) } : { path: `${host}/.s.PGSQL.${port ?? 5432}` },
  )
  ending.push(() => proxy.close())
  if (url) Object.assign(url, { hostname: proxy.host, port: String(proxy.port) })
  const through = url ? { connectionString: String(url) } : { host: proxy.host, port: proxy.port }
  return { proxy, connection: { ...connection, ...through } }
}

test('a queue whose first connection failed works once the database answers', async () => {
  const { proxy, connection } = await openDatabaseProxy()
  proxy.cut()
  const logged: string[] = []
  const queue = createQueue({ kind: 'postgres', connection }, pino({}, { write: (line) => void logged.push(line) }))
  ending.push(() => queue.close())
  queue.enqueue()
  await until('the outage to be logged', () => logged.some((line) => line.includes('the queue is unreachable')))

  proxy.heal()
  await queue.check()
  expect(await queue.countWaiting()).toBe(0)
  let taken = 0
  const take = async () => {
    taken += 1
  }
  const work = queue.work(take, 1)
  ending.push(() => work.stop())
  await until('the job to be processed', () => {
    queue.enqueue()
    return taken > 0
  })
})

test('while the database refuses every connection, a worker asks it some times in a second', async () => {
  const { proxy, connection } = await openDatabaseProxy()
  let attempts = 0
  let isDown = false
  class Counted extends pg.Client {
    constructor(config?: pg.ClientConfig) {
      super(isDown ? { ...config, host: '/nonexistent', port: 1 } : config)
    }
    override connect(...given: []) {
      attempts += 1
      return super.connect(...given)
    }
  }
  const backend = { kind: 'postgres', connection: { ...connection, Client: Counted } } as const
  const queue = createQueue(backend, pino({ level: 'silent' }))
  ending.push(() => queue.close())
  let taken = 0
  const isCut = Promise.withResolvers<void>()
  const take = () => {
    taken += 1
    return isCut.promise
  }
  const work = queue.work(take, 1)
  ending.push(() => work.stop())
  await until('a job to be taken', () => {
    queue.enqueue()
    return taken > 0
  })

  isDown = true
  proxy.cut()
  isCut.resolve()
  await sleep(1000)
  const before = attempts
  await sleep(3000)
  expect(attempts - before).toBeGreaterThan(0)
  expect(attempts - before).toBeLessThan(60)
  isDown = false
  proxy.heal()
  const takenBefore = taken
  await until('the next job to be taken', () => {
    queue.enqueue()
    return taken > takenBefore
  })
})
