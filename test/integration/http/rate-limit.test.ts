import { createServer, type Server } from 'node:net'
import { pino } from 'pino'
import { afterEach, describe, expect, inject, test } from 'vitest'
import { newApiKey } from '#http/api-key.ts'
import { connectLimits, type RateLimits } from '#http/rate-limit.ts'
import { errorBody } from '../../support/error-body.ts'
import { startFakeClawHub } from '../../support/fake-clawhub.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { startFakeGateway } from '../../support/fake-gateway.ts'
import { openTestChowder, type TestChowder } from '../../support/test-chowder.ts'
import { cloneDatabase } from '../../support/test-database.ts'
import { until } from '../../support/until.ts'

const _silent = pino({ level: 'silent' })
const unknownKey = newApiKey('organization')
const undo: (() => Promise<unknown> | unknown)[] = []
afterEach(async () => {
  for (const act of undo.splice(0).reverse()) await act()
})

async function open(limits: Partial<RateLimits>, more: Partial<Parameters<typeof openTestChowder>[0]> = {}) {
  const chowder = await openTestChowder({ sandboxes: new FakeDriver(), limits, ...more })
  undo.push(() => chowder.close())
  return chowder
}

const read = (chowder: TestChowder, key?: string, headers = {}) =>
  chowder.call('GET', '/v1/organization', { ...(key && { key }), headers })
const statuses = (answers: { status: number }[]) => answers.map(({ status }) => status)

async function times<T>(count: number, act: () => Promise<T>): Promise<T[]> {
  const results: T[] = []
  for (let i = 0; i < count; i += 1) results.push(await act())
  return results
}

describe('requests of one key', () => {
  test('get the number that is left, and a 429 with Retry-After above the limit', async () => {
    const chowder = await open({ requestsPerMinute: 4 })
    const { key } = await chowder.signUp() // its PATCH is the first request
    const answers = await times(4, () => read(chowder, key))
    expect(statuses(answers)).toEqual([200, 200, 200, 429])
    for (const { headers } of answers) {
      expect(headers['ratelimit-policy']).toBe('"key";q=4;w=60')
      expect(headers.ratelimit).toMatch(/^"key";r=\d+;t=([1-5]\d|60|\d)$/)
    }
    expect(answers.map(({ headers }) => /r=(\d+)/.exec(String(headers.ratelimit))?.[1])).toEqual(['2', '1', '0', '0'])
    const refused = answers.at(-1)
    const seconds = Number(refused?.headers['retry-after'])
    expect(seconds).toBeGreaterThan(0)
    expect(seconds).toBeLessThanOrEqual(60)
    expect(refused?.body).toEqual(errorBody('rate_limited', `Too many requests. Try again in ${seconds} seconds.`))
  })

  test('are limited only for that key, not for another key of the organization', async () => {
    const chowder = await open({ requestsPerMinute: 3 })
    const { key } = await chowder.signUp()
    const { body } = await chowder.call('POST', '/v1/organization/keys', { key, body: { name: 'second' } })
    expect(statuses(await times(2, () => read(chowder, key)))).toEqual([200, 429])
    expect((await read(chowder, body.raw_key)).status).toBe(200)
  })

  test('S15: of all keys of an organization are limited together, and another organization is not', async () => {
    const chowder = await open({ requestsPerMinute: 100, organizationRequestsPerMinute: 6 })
    const { key } = await chowder.signUp() // its PATCH is the first request
    const other = await chowder.signUp()
    const { body } = await chowder.call('POST', '/v1/organization/keys', { key, body: { name: 'second' } })
    const answers = [
      ...(await times(2, () => read(chowder, key))),
      ...(await times(3, () => read(chowder, body.raw_key))),
    ]
    expect(statuses(answers)).toEqual([200, 200, 200, 200, 429])
    const { headers } = answers.at(-1) as (typeof answers)[number]
    expect(headers['ratelimit-policy']).toBe('"key";q=100;w=60, "organization";q=6;w=60')
    expect(headers.ratelimit).toMatch(/^"key";r=97;t=\d+, "organization";r=0;t=\d+$/)
    expect(Number(headers['retry-after'])).toBeGreaterThan(0)
    expect((await read(chowder, other.key)).status).toBe(200)
  })

  test('also count when they are invalid', async () => {
    const chowder = await open({ requestsPerMinute: 3 })
    const { key } = await chowder.signUp()
    const bad = () => chowder.call('POST', '/v1/instances', { key, body: { nmae: 'x' } })
    expect(statuses(await times(3, bad))).toEqual([422, 422, 429])
  })

  test('are refused before their body is read, on the responses routes too', async () => {
    const chowder = await open({ requestsPerMinute: 1 })
    const { key } = await chowder.signUp()
    const path = '/v1/instances/01234567-89ab-7def-8123-456789abcdef/responses'
    const { status, body } = await chowder.call('POST', path, { key, body: '{not json' })
    expect(status).toBe(429)
    expect(body).toEqual(errorBody('rate_limited', body.detail))
  })

  test('are not limited and have no headers of limits when the limit is 0', async () => {
    const chowder = await open({ requestsPerMinute: 0 })
    const { key } = await chowder.signUp()
    const answers = await times(20, () => read(chowder, key))
    expect(new Set(statuses(answers))).toEqual(new Set([200]))
    expect(answers[0]?.headers.ratelimit).toBeUndefined()
  })
})

describe('S26: calls that cost more than others', () => {
  async function newInstance(chowder: TestChowder, key: string): Promise<string> {
    const { body } = await chowder.call('POST', '/v1/instances', { key, body: { name: 'x' } })
    return body.id
  }

  test('are ten pairings a minute for an instance, with all keys', async () => {
    const gateway = await startFakeGateway({})
    undo.push(() => gateway.close())
    const requests = [{ requestId: 'r-1', accountId: 'default', senderId: '777' }]
    gateway.methods['channels.pairing.list'] = () => ({ requests })
    const driver = new FakeDriver(() => gateway.endpoint)
    const listings: (readonly string[])[] = []
    driver.onExec = (argv) => {
      if (!argv.includes('pairing')) return undefined
      listings.push(argv)
      return { exitCode: 0, stdout: '{"requests":[]}', stderr: '' }
    }
    const chowder = await open({ requestsPerMinute: 1000 }, { sandboxes: driver })
    const { key } = await chowder.signUp()
    await chowder.startWorker()
    const ids = [await newInstance(chowder, key), await newInstance(chowder, key)]
    for (const id of ids) {
      const isRunning = async () =>
        (await chowder.call('GET', `/v1/instances/${id}`, { key })).body.status === 'running'
      await until('the instance to run', isRunning)
      await chowder.database.pool.query(
        `INSERT INTO channels (instance_id, channel, enabled, sealed_config) VALUES ($1, 'telegram', true, '')`,
        [id],
      )
    }
    const { body } = await chowder.call('POST', '/v1/organization/keys', { key, body: { name: 'second' } })
    const guess = (id: string, as = key) =>
      chowder.call('POST', `/v1/instances/${id}/channels/telegram/pair`, { key: as, body: { code: 'WRONG123' } })
    const answers = [
      ...(await times(5, () => guess(ids[0] ?? ''))),
      ...(await times(6, () => guess(ids[0]?.toUpperCase() ?? '', body.raw_key))),
    ]
    expect(statuses(answers)).toEqual([...Array(10).fill(400), 429])
    expect(listings).toHaveLength(10)
    expect(answers.at(-1)?.body.error.code).toBe('rate_limited')
    expect(Number(answers.at(-1)?.headers['retry-after'])).toBeGreaterThan(0)
    expect((await guess(ids[1] ?? '')).status).toBe(400)
  })

  test('are ten searches for skills a minute for an organization, on all its instances', async () => {
    const hub = await startFakeClawHub()
    undo.push(() => hub.close())
    const chowder = await open({ requestsPerMinute: 1000 }, { clawhubUrl: hub.url })
    const [one, other] = [await chowder.signUp(), await chowder.signUp()]
    const ids = [await newInstance(chowder, one.key), await newInstance(chowder, one.key)]
    const search = (id = '', key = one.key) => chowder.call('GET', `/v1/instances/${id}/skills/search?q=x`, { key })
    const answers = [...(await times(5, () => search(ids[0]))), ...(await times(6, () => search(ids[1])))]
    expect(statuses(answers)).toEqual([...Array(10).fill(200), 429])
    expect(hub.requests).toHaveLength(10)
    expect(Number(answers.at(-1)?.headers['retry-after'])).toBeGreaterThan(0)
    expect((await search(await newInstance(chowder, other.key), other.key)).status).toBe(200)
  })
})

describe('signups', () => {
  const signUp = (chowder: TestChowder, body: unknown = { name: 'Acme' }, headers = {}) =>
    chowder.call('POST', '/v1/organization/signup', { body, headers })

  test('are limited by address; invalid ones do not count', async () => {
    const chowder = await open({ signupsPerHour: 2 })
    expect(statuses(await times(3, () => signUp(chowder, {})))).toEqual([422, 422, 422])
    const answers = await times(3, () => signUp(chowder))
    expect(statuses(answers)).toEqual([201, 201, 429])
    expect(answers[0]?.headers['ratelimit-policy']).toBe('"signup";q=2;w=3600')
    expect(Number(answers[2]?.headers['retry-after'])).toBeGreaterThan(3500)
  })

  test('count for the address of the connection, whatever X-Forwarded-For says, unless a proxy is trusted', async () => {
    const chowder = await open({ signupsPerHour: 1 })
    const from = (address: string) => signUp(chowder, { name: 'a' }, { 'x-forwarded-for': address })
    expect(statuses([await from('203.0.113.1'), await from('203.0.113.2')])).toEqual([201, 429])
  })

  test('behind one trusted proxy count for the address that the proxy appended, not for one from the client', async () => {
    const chowder = await open({ signupsPerHour: 1 }, { trustedProxies: 1 })
    const from = (addresses: string) => signUp(chowder, { name: 'a' }, { 'x-forwarded-for': addresses })
    expect(statuses([await from('203.0.113.1'), await from('203.0.113.2')])).toEqual([201, 201])
    expect(statuses([await from('198.51.100.7, 203.0.113.1'), await from('203.0.113.2')])).toEqual([429, 429])
  })

  test('of one IPv6 network count together', async () => {
    const chowder = await open({ signupsPerHour: 1 }, { trustedProxies: 1 })
    const from = (address: string) => signUp(chowder, { name: 'a' }, { 'x-forwarded-for': address })
    expect(statuses([await from('2001:db8::1'), await from('2001:db8::2'), await from('2001:db8:1::1')])).toEqual([
      201, 429, 201,
    ])
  })
})

describe('requests without a valid key', () => {
  test('are a 429 above the limit of their address, while a valid key from there is still accepted', async () => {
    const chowder = await open({ failedAuthPerMinute: 3 })
    const { key } = await chowder.signUp()
    const bad = [await read(chowder), await read(chowder, 'nonsense'), await read(chowder, unknownKey)]
    expect(statuses(bad)).toEqual([401, 401, 401])
    expect(bad[0]?.headers['ratelimit-policy']).toBe('"failed-auth";q=3;w=60')
    const refused = [await read(chowder), await read(chowder, 'nonsense'), await read(chowder, unknownKey)]
    expect(statuses(refused)).toEqual([429, 429, 429])
    expect(Number(refused[0]?.headers['retry-after'])).toBeGreaterThan(0)
    expect((await read(chowder, key)).status).toBe(200)
  })

  test('do not count when the key is valid', async () => {
    const chowder = await open({ failedAuthPerMinute: 1 })
    const { key } = await chowder.signUp()
    await times(5, () => read(chowder, key))
    expect((await read(chowder)).status).toBe(401)
  })
})

test('routes without a key are not limited, except the signup', async () => {
  const chowder = await open({ requestsPerMinute: 1, signupsPerHour: 1, failedAuthPerMinute: 1 })
  for (const path of ['/healthz', '/readyz', '/openapi.json']) {
    const answers = await times(5, () => chowder.call('GET', path))
    expect(new Set(statuses(answers))).toEqual(new Set([200]))
    expect(answers[0]?.headers.ratelimit).toBeUndefined()
  }
})

describe.skipIf(inject('redisUrl') === null)('with Redis', () => {
  async function connected() {
    const redis = connectLimits(inject('redisUrl') ?? '')
    undo.push(() => redis.disconnect())
    await until('Redis', () => redis.status === 'ready')
    redis.options.commandTimeout = 10_000 // late answers are the subject of the tests below
    return redis
  }

  test('two processes count together', async () => {
    const database = await cloneDatabase()
    undo.push(() => database.drop())
    const one = await open({ requestsPerMinute: 3, redis: await connected() }, { database })
    const two = await open({ requestsPerMinute: 3, redis: await connected() }, { database })
    const { key } = await one.signUp() // its PATCH is the first request
    const answers = [await read(two, key), await read(one, key), await read(two, key), await read(one, key)]
    expect(statuses(answers)).toEqual([200, 200, 429, 429])
    expect(answers[0]?.headers.ratelimit).toMatch(/^"key";r=1;t=\d+$/)
  })
})

describe('without an answer from Redis', () => {
  async function listen(server: Server): Promise<string> {
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    undo.push(() => new Promise((resolve) => server.close(resolve)))
    const address = server.address()
    return `redis://127.0.0.1:${typeof address === 'object' ? address?.port : 0}`
  }

  /** Answers only the commands that ioredis sends when it starts. */
  const hangs = () => {
    const server = createServer((socket) => {
      undo.push(() => socket.destroy())
      socket.on('error', () => {})
      socket.on('data', (data) => {
        for (const [, command = ''] of String(data).matchAll(/\*\d+\r\n\$\d+\r\n(\w+)/g)) {
          const answer = { info: '$21\r\nredis_version:7.0.0\r\n\r\n', client: '+OK\r\n' }[command.toLowerCase()]
          if (answer) socket.write(answer)
        }
      })
    })
    return listen(server)
  }

  test.each([
    ['down', async () => 'redis://127.0.0.1:9', 'reconnecting'],
    ['hung', hangs, 'ready'],
  ])('when it is %s, every request is let through, and waits less than 100 ms', async (_what, start, status) => {
    const redis = connectLimits(await start())
    undo.push(() => redis.disconnect())
    await until(`the connection to be ${status}`, () => redis.status === status)
    const chowder = await open({ requestsPerMinute: 1, signupsPerHour: 1, failedAuthPerMinute: 1, redis })
    const { key } = await chowder.signUp()
    await read(chowder, key)
    const tookMs: number[] = []
    for (let i = 0; i < 5; i += 1) {
      const began = performance.now()
      const { status, headers } = await read(chowder, key)
      expect([status, headers.ratelimit]).toEqual([200, undefined])
      tookMs.push(performance.now() - began)
    }
    // The shortest time: a busy machine delays some, Redis would delay all.
    expect(Math.min(...tookMs)).toBeLessThan(100)
    expect((await read(chowder, 'nonsense')).status).toBe(401)
    expect((await read(chowder, 'nonsense')).status).toBe(401)
  })
})
