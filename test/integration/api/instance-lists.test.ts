import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest'
import { FakeDriver } from '../../support/fake-driver.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

let key: string
let organizationId: string

const chowder = await openTestChowder({ sandboxes: new FakeDriver() })
beforeEach(async () => {
  const organization = await chowder.signUp()
  key = organization.key
  organizationId = organization.id
})
afterAll(() => chowder.close())

const call = (method: 'GET' | 'POST' | 'PATCH' | 'DELETE', path: string, body?: unknown, as = key) =>
  chowder.call(method, `/v1/instances${path}`, { key: as, ...(body !== undefined && { body }) })

async function create(fields: object = {}): Promise<string> {
  const { status, body } = await call('POST', '', { name: 'agent', ...fields })
  expect(status).toBe(201)
  return body.id
}

/** Puts a row into a state as a worker would leave it. */
const become = (id: string, columns: string) =>
  chowder.database.pool.query(`UPDATE instances SET observed_generation = generation, ${columns} WHERE id = $1`, [id])
const states = {
  provisioning: '',
  running: 'ready_at = now()',
  error: 'ready_at = NULL',
  stopped: `ready_at = NULL, desired_state = 'stopped'`,
  terminated: `ready_at = NULL, desired_state = 'terminated', terminated_at = now()`,
}
type State = keyof typeof states

async function createIn(state: State, fields: object = {}): Promise<string> {
  const id = await create(fields)
  if (state !== 'provisioning') await become(id, states[state])
  return id
}

const idsOf = (body: { id: string }[]) => body.map(({ id }) => id)
const nextOf = (headers: Record<string, unknown>) => /^<(.*)>; rel="next"$/.exec(String(headers.link ?? ''))?.[1]

/** Reads all pages, each by the link of the page before. */
async function pages(query: string): Promise<string[][]> {
  const found: string[][] = []
  for (let path: string | undefined = `/v1/instances?${query}`; path; ) {
    const { status, body, headers } = await chowder.call('GET', path, { key })
    expect(status).toBe(200)
    found.push(idsOf(body))
    const next = nextOf(headers)
    expect(next ?? 'http://chowder.test/').toMatch(/^http:\/\/chowder\.test\//)
    path = next?.slice('http://chowder.test'.length)
  }
  return found
}

describe('GET /v1/instances', () => {
  test('S10: a page ends before its overrides and instructions are much more than 1 MiB', async () => {
    const ids: string[] = []
    const instructions = 'Be brief. '.repeat(9000)
    for (let i = 0; i < 14; i += 1) ids.push(await create({ instructions }))
    const [first = [], second = [], ...more] = await pages('limit=100')
    expect([...first, ...second]).toEqual(ids.toReversed())
    expect(first.length).toBe(Math.ceil((1024 * 1024) / JSON.stringify(instructions).length))
    expect(more).toEqual([])
  })

  test('pages hold each instance once, newest first, also when many have the same creation time', async () => {
    const ids: string[] = []
    for (let i = 0; i < 7; i += 1) ids.push(await create())
    ids.sort() // those of the same millisecond have any order
    // They differ by microseconds, which JavaScript dates do not hold; the last three are equal.
    await chowder.database.pool.query(
      `UPDATE instances SET created_at = timestamptz '2026-02-14T12:00:00.000100Z' + least(i, 4) * interval '1 microsecond'
       FROM unnest($1::uuid[]) WITH ORDINALITY AS listed (id, i) WHERE instances.id = listed.id`,
      [ids],
    )
    const newestFirst = ids.toReversed()
    expect(idsOf((await call('GET', '')).body)).toEqual(newestFirst)
    expect(await pages('limit=3')).toEqual([newestFirst.slice(0, 3), newestFirst.slice(3, 6), newestFirst.slice(6)])
    expect((await pages('limit=7')).length).toBe(1)
  })

  test('when the last instance of a page is deleted, the next page still begins after it', async () => {
    const ids = [await create(), await create(), await create()].toReversed()
    const first = await call('GET', '?limit=2')
    await call('DELETE', `/${ids[1]}`)
    const rest = await chowder.call(
      'GET',
      new URL(nextOf(first.headers) ?? '').pathname + new URL(nextOf(first.headers) ?? '').search,
      { key },
    )
    expect(idsOf(rest.body)).toEqual([ids[2]])
    expect(rest.headers.link).toBeUndefined()
  })

  test('holds nothing of another organization', async () => {
    await create()
    await call('POST', '', { name: 'theirs' }, (await chowder.signUp()).key)
    expect((await call('GET', '')).body).toMatchObject([{ organization_id: organizationId }])
  })

  test('without parameters, all instances are one array without a link', async () => {
    await Promise.all(Array.from({ length: 103 }, () => create()))
    const { body, headers } = await call('GET', '')
    expect([body.length, headers.link]).toEqual([103, undefined])
  })

  test('the link keeps the filters', async () => {
    for (const name of ['one & two', 'other', 'ONE & TWO']) await createIn('running', { name })
    const first = await call('GET', `?limit=1&status=running&name=${encodeURIComponent('ne & t')}`)
    const next = new URL(nextOf(first.headers) ?? '')
    expect(Object.fromEntries(next.searchParams)).toMatchObject({ limit: '1', status: 'running', name: 'ne & t' })
    expect((await pages(`limit=1&status=running&name=${encodeURIComponent('ne & t')}`)).flat()).toHaveLength(2)
  })

  test('each status lists exactly its instances; terminated ones are listed only by their status', async () => {
    const ids = {} as Record<State, string>
    for (const state of Object.keys(states) as State[]) ids[state] = await createIn(state)
    for (const [state, id] of Object.entries(ids)) {
      const { body } = await call('GET', `?status=${state}`)
      expect(body).toMatchObject([{ id, status: state }])
    }
    const listed = idsOf((await call('GET', '')).body)
    expect(listed.toSorted()).toEqual(
      Object.values({ ...ids, terminated: '' })
        .filter(Boolean)
        .toSorted(),
    )
  })

  test('several statuses list the instances of each', async () => {
    const ids = {} as Record<State, string>
    for (const state of Object.keys(states) as State[]) ids[state] = await createIn(state)
    const { body } = await call('GET', '?status=error&status=terminated&status=stopped')
    expect(idsOf(body)).toEqual([ids.terminated, ids.stopped, ids.error])
    expect(await pages('limit=1&status=error&status=running')).toEqual([[ids.error], [ids.running]])
  })

  test('labels find the instances that have all of them, with these values', async () => {
    const one = await create({ metadata: { customer: 'cust-42', 'a[b]': 'é & =', 0: 'zero' } })
    const two = await create({ metadata: { customer: 'cust-42', plan: 'pro' } })
    await create({ metadata: { customer: 'cust-421' } })
    await create()
    await call('POST', '', { name: 'theirs', metadata: { customer: 'cust-42' } }, (await chowder.signUp()).key)
    const found = async (labels: Record<string, string>) => {
      const query = new URLSearchParams(
        Object.entries(labels).map(([key, value]): [string, string] => [`metadata[${key}]`, value]),
      )
      return (await pages(`limit=1&${query}`)).flat()
    }
    expect(await found({ customer: 'cust-42' })).toEqual([two, one])
    expect(await found({ customer: 'cust-42', plan: 'pro' })).toEqual([two])
    expect(await found({ 'a[b]': 'é & =', 0: 'zero' })).toEqual([one])
    expect(await found({ plan: 'cust-42' })).toEqual([])
    expect(idsOf((await call('GET', '?metadata[customer]=cust-42&status=running')).body)).toEqual([])
    expect(idsOf((await call('GET', '?metadata.customer=cust-42&metadata[plan]=pro')).body)).toEqual([two])
  })

  test('lists of live instances, labels and external ids are found by their indexes', async () => {
    const { pool } = chowder.database
    const planOf = async (path: string, without: string) => {
      const queries = vi.spyOn(pool, 'query')
      await call('GET', path)
      const asked = (queries.mock.calls as unknown as [{ text: string }, unknown[]][]).find(([{ text }]) =>
        text?.includes('order by'),
      )
      queries.mockRestore()
      const client = await pool.connect()
      await client.query(`BEGIN; SET LOCAL enable_seqscan = off; DROP INDEX ${without}`) // few rows
      const plan = await client.query(`EXPLAIN ${asked?.[0].text}`, asked?.[1]).catch((error: unknown) => error)
      await client.query('ROLLBACK')
      client.release()
      return JSON.stringify(plan)
    }
    const all = 'instances_organization, instances_live'
    expect(await planOf('?metadata[customer]=cust-42', all)).toContain('instances_metadata')
    expect(await planOf('?external_id=mine', all)).toContain('instances_external_id')
    for (const query of ['', '?status=running', '?status=error&status=stopped'])
      expect(await planOf(query, 'instances_organization')).toContain('instances_live')
  })

  test('a terminated instance is no longer listed after 30 days', async () => {
    await become(await create(), `desired_state = 'terminated', terminated_at = now() - interval '30 days 1 minute'`)
    expect((await call('GET', '?status=terminated')).body).toEqual([])
  })

  test.each([
    ['%', ['100% agent']],
    ['_', ['a_b']],
    ['\\', ['back\\slash']],
    ['ÄRGER', ['ärger']],
    ['AGENT', ['100% agent']],
    ['nothing', []],
  ])('a name that holds %s is found by exactly that', async (part, expected) => {
    for (const name of ['100% agent', 'a_b', 'back\\slash', 'ärger', 'axb']) await create({ name })
    const { body } = await call('GET', `?name=${encodeURIComponent(part)}`)
    expect(body.map(({ name }: { name: string }) => name)).toEqual(expected)
  })

  test.each([
    'limit=0',
    'limit=1001',
    'limit=1.5',
    'limit=',
    'limit=x',
    'limit=1&limit=2',
    'status=asleep',
    'status=running&status=asleep',
    'status[]=running',
    'external_id=',
    'external_id=a%20b',
    `external_id=${'x'.repeat(129)}`,
    'external_id=a&external_id=b',
    'metadata=cust-42',
    'metadata[]=x',
    'metadata[a]=x&metadata[a]=y',
    `metadata[a]=${'x'.repeat(513)}`,
    Array.from({ length: 17 }, (_, i) => `metadata[${i}]=x`).join('&'),
    'name=',
    'name=%00',
    `name=${'x'.repeat(129)}`,
    'sort=name',
    `cursor=${'x'.repeat(4097)}`,
  ])('%s is a 422 that names the parameter', async (query) => {
    const { status, body } = await call('GET', `?${query}`)
    expect(status).toBe(422)
    expect(body.detail[0].loc.slice(0, 2)).toEqual(['query', query.split(/[=[]/)[0]])
  })

  test.each(['', 'x', 'MTIz', 'MDEyMzQ1Njctd2hhdGV2ZXI', '%00', '%F0%9F%A6%9E'])(
    'a cursor %j that came from no page is a 400',
    async (cursor) => {
      const { status, body } = await call('GET', `?cursor=${cursor}`)
      expect([status, body.detail]).toEqual([400, expect.stringContaining('X-Next-Cursor')])
    },
  )

  test('a cursor of another organization lists nothing of either, like an unknown cursor', async () => {
    const mine = await call('POST', '', { name: 'mine' })
    const theirs = await chowder.signUp()
    for (let i = 0; i < 3; i += 1) await call('POST', '', { name: 'theirs' }, theirs.key)
    const { headers } = await call('GET', '?limit=1', undefined, theirs.key)
    const { search } = new URL(nextOf(headers) ?? '')
    const nobodys = Buffer.from(mine.body.id.replace(/^./, 'f')).toString('base64url')
    for (const query of [search, `?cursor=${nobodys}`]) {
      const { status, body } = await call('GET', query)
      expect([status, body]).toEqual([200, []])
    }
  })
})

describe('metadata', () => {
  const full = Object.fromEntries(Array.from({ length: 16 }, (_, i) => [`${i}`.padEnd(64, 'ü'), '🦞'.repeat(512)]))

  test('is returned as it was sent, wherever an instance is', async () => {
    const { status, body } = await call('POST', '', { name: 'a', metadata: full })
    expect([status, body.metadata]).toEqual([201, full])
    expect((await call('GET', `/${body.id}`)).body.metadata).toEqual(full)
    expect((await call('GET', '')).body[0].metadata).toEqual(full)
  })

  test('a PATCH sets what is sent, removes what is null, and keeps the rest, also of a running instance', async () => {
    const id = await createIn('running', { metadata: { a: '1', b: '2', c: '3' } })
    const { status, body } = await call('PATCH', `/${id}`, { metadata: { b: 'two', c: null, none: null, d: '4' } })
    expect([status, body.metadata]).toEqual([200, { a: '1', b: 'two', d: '4' }])
    expect([body.name, body.status]).toEqual(['agent', 'running'])
    expect((await call('PATCH', `/${id}`, { name: 'other' })).body.metadata).toEqual(body.metadata)
    expect((await call('PATCH', `/${id}`, { metadata: {} })).body.metadata).toEqual(body.metadata)
    expect((await call('PATCH', `/${id}`, { metadata: null })).body.metadata).toEqual({})
  })

  test('PATCHes of different labels at the same time are all kept', async () => {
    const id = await create()
    await Promise.all(Array.from({ length: 8 }, (_, i) => call('PATCH', `/${id}`, { metadata: { [`k${i}`]: 'x' } })))
    expect(Object.keys((await call('GET', `/${id}`)).body.metadata)).toHaveLength(8)
  })

  test('a PATCH that would leave 17 labels is a 400 that says how many, and changes nothing', async () => {
    const id = await create({ metadata: full })
    const { status, body } = await call('PATCH', `/${id}`, { name: 'other', metadata: { more: 'x' } })
    expect([status, body.detail]).toEqual([400, expect.stringContaining('17')])
    expect((await call('GET', `/${id}`)).body).toMatchObject({ name: 'agent', metadata: full })
    const [first = ''] = Object.keys(full)
    expect((await call('PATCH', `/${id}`, { metadata: { more: 'x', [first]: null } })).status).toBe(200)
  })

  test.each([
    ['17 pairs', { ...full, more: 'x' }],
    ['an empty key', { '': 'x' }],
    ['a key of 65 characters', { ['k'.repeat(65)]: 'x' }],
    ['a value of 513 characters', { k: 'x'.repeat(513) }],
    ['a number', { k: 1 }],
    ['a boolean', { k: true }],
    ['an object', { k: {} }],
    ['a control character in a key', { 'a\u0000b': 'x' }],
    ['a control character in a value', { k: 'a\nb' }],
    ['no object', ['x']],
  ])('%s is a 422, at create and at PATCH', async (_what, metadata) => {
    const id = await create()
    for (const answer of [
      await call('POST', '', { name: 'a', metadata }),
      await call('PATCH', `/${id}`, { metadata }),
    ]) {
      expect(answer.status).toBe(422)
      expect(answer.body.detail[0].loc.slice(0, 2)).toEqual(['body', 'metadata'])
    }
  })
})

describe('GET /v1/instances/{id}/status?wait', () => {
  const wait = async (id: string, query: string) => {
    const began = performance.now()
    const { status, body } = await call('GET', `/${id}/status?${query}`)
    expect(status).toBe(200)
    return { status: body.status as string, ms: performance.now() - began }
  }

  test('responds as soon as the instance runs', async () => {
    const id = await create()
    const answer = wait(id, 'wait=running')
    await until('a poll of the waiting one', async () => (await call('GET', `/${id}/status`)).status === 200)
    await become(id, states.running)
    expect(await answer).toMatchObject({ status: 'running' })
    expect((await answer).ms).toBeLessThan(15_000)
  })

  test.each(['error', 'stopped', 'terminated'] as const)(
    'a wait for running ends when the instance becomes %s',
    async (state) => {
      const id = await create()
      const answer = wait(id, 'wait=running&timeout=20')
      await become(id, states[state])
      expect((await answer).status).toBe(state)
      expect((await answer).ms).toBeLessThan(15_000)
    },
  )

  test.each([
    ['running', 'running'],
    ['running', 'error'],
    ['running', 'stopped'],
    ['running', 'terminated'],
    ['stopped', 'running'],
    ['stopped', 'stopped'],
    ['stopped', 'error'],
    ['stopped', 'terminated'],
  ] as const)('waiting for %s is answered at once when it is %s', async (wanted, state) => {
    const { status, ms } = await wait(await createIn(state), `wait=${wanted}&timeout=20`)
    expect(status).toBe(state)
    expect(ms).toBeLessThan(15_000)
  })

  test('a wait for stopped lasts until the agent has stopped', async () => {
    const id = await create()
    await chowder.database.pool.query(
      `UPDATE instances SET desired_state = 'stopped', observed_generation = generation - 1 WHERE id = $1`,
      [id],
    )
    const short = await wait(id, 'wait=stopped&timeout=1')
    expect(short.ms).toBeGreaterThan(900)
    const answer = wait(id, 'wait=stopped&timeout=20')
    await become(id, states.stopped)
    expect((await answer).ms).toBeLessThan(15_000)
  })

  test.each([
    ['terminated', `desired_state = 'terminated', terminated_at = now(), observed_generation = generation - 1`],
    ['settled', `desired_state = 'stopped', observed_generation = generation - 1`],
  ] as const)('a wait for %s lasts until the work is done', async (wanted, columns) => {
    const id = await create()
    await chowder.database.pool.query(`UPDATE instances SET ${columns} WHERE id = $1`, [id])
    expect((await wait(id, `wait=${wanted}&timeout=1`)).ms).toBeGreaterThan(900)
    const answer = wait(id, `wait=${wanted}&timeout=20`)
    await become(id, 'step = NULL')
    expect((await answer).ms).toBeLessThan(15_000)
  })

  test('responds with the present status when the time is over', async () => {
    const { status, ms } = await wait(await create(), 'wait=running&timeout=1')
    expect(status).toBe('provisioning')
    expect(ms).toBeGreaterThan(900)
    expect(ms).toBeLessThan(15_000)
    expect((await wait(await create(), 'wait=running&timeout=0')).ms).toBeLessThan(15_000)
  })

  test.each(['wait=error', 'wait=', 'timeout=61', 'timeout=-1', 'timeout=x', 'until=running'])(
    '%s is a 422',
    async (query) => {
      expect((await call('GET', `/${await create()}/status?${query}`)).status).toBe(422)
    },
  )

  test('an unknown instance is a 404 at once', async () => {
    const { status } = await call('GET', `/01234567-89ab-7def-8123-456789abcdef/status?wait=running`)
    expect(status).toBe(404)
  })

  test('does not wait for a client that left before', async () => {
    const other = await openTestChowder({ sandboxes: new FakeDriver(), database: chowder.database })
    onTestFinished(() => other.close())
    const url = await other.app.listen({ port: 0, host: '127.0.0.1' })
    const { pool } = chowder.database
    const id = await create()
    const gone = Promise.withResolvers<void>()
    const query = pool.query.bind(pool) as (...asked: unknown[]) => unknown
    const queries = vi.spyOn(pool, 'query').mockImplementation(async (...asked: unknown[]) => {
      if (lookups(queries) > 0) await gone.promise
      return query(...asked)
    })
    onTestFinished(() => queries.mockRestore())
    const client = new AbortController()
    const asked = fetch(`${url}/v1/instances/${id}/status?wait=running`, {
      headers: { authorization: `Bearer ${key}` },
      signal: client.signal,
    })
    await until('the instance to be looked up', () => lookups(queries) === 1)
    client.abort()
    await expect(asked).rejects.toThrow()
    await until('the connection to be gone', () => other.logged.some((line) => line.includes('"clientLeft":true')))
    gone.resolve()
    await sleep(1000)
    expect(lookups(queries)).toBe(1)
  })

  test('a server that closes responds to the waiting requests', async () => {
    const other = await openTestChowder({ sandboxes: new FakeDriver(), database: chowder.database })
    const id = await create()
    const url = await other.app.listen({ port: 0, host: '127.0.0.1' })
    const queries = vi.spyOn(chowder.database.pool, 'query')
    onTestFinished(() => queries.mockRestore())
    const answer = fetch(`${url}/v1/instances/${id}/status?wait=running`, {
      headers: { authorization: `Bearer ${key}` },
    })
    await until('the request to be waiting', () => lookups(queries) > 1)
    const began = performance.now()
    const closed = other.close()
    expect(await (await answer).json()).toMatchObject({ id, status: 'provisioning' })
    expect(performance.now() - began).toBeLessThan(10_000)
    await closed
  })
})

const lookups = ({ mock }: { mock: { calls: unknown[][] } }) =>
  mock.calls.filter(([query]) => (query as { name?: string }).name === 'find_summaries').length
