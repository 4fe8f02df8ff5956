import pg from 'pg'
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest'
import { filterOf } from '#api/usage/query.ts'
import { readAllUsage, readUsage } from '#api/usage/read.ts'
import { newId } from '#platform/ids.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

let [first, second]: string[] = []

interface Call {
  organization?: string
  instance?: string | undefined
  at: string
  session?: string | null
  model?: string | null
  endUser?: string | null
  cause?: string | null
  outcome?: string
  input?: number | null
  cost?: number | null
}

async function addCalls(...calls: Call[]): Promise<void> {
  for (const call of calls) {
    const { organization = acme.id, instance = first, at, session = 'main', model = 'claude-haiku-4-5' } = call
    const { endUser = null, cause = null, outcome = 'answered', input = 100, cost = 0.25 } = call
    const output = input === null ? null : 10
    await chowder.database.pool.query(
      `INSERT INTO model_calls (id, organization_id, instance_id, provider, began_at, session, model, end_user, cause,
         outcome, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost)
       VALUES ($1, $2, $3, 'anthropic', $4, $5, $6, $7, $8, $9, $10, $11, $11, $11, $11, $12)`,
      [newId(), organization, instance, at, session, model, endUser, cause, outcome, input, output, cost],
    )
  }
}

const hex = (id: string) => `s-${Buffer.from(id).toString('hex')}`
const addInstance = async (key: string, fields: object) =>
  (await chowder.call('POST', '/v1/instances', { key, body: { name: 'agent', ...fields } })).body.id as string

const chowder = await openTestChowder({ sandboxes: new FakeDriver() })
const acme = await chowder.signUp()
const other = await chowder.signUp()
first = await addInstance(acme.key, { metadata: { customer: 'c1', plan: 'pro' } })
second = await addInstance(acme.key, { metadata: { customer: 'c2' } })
const ofOther = await addInstance(other.key, { metadata: { customer: 'c1' } })
await addCalls(
  // The night in which Berlin's clocks go back: its day has 25 hours.
  { at: '2026-10-24T21:59:59Z', session: hex('user-1-a'), cause: 'api' },
  { at: '2026-10-24T22:00:00Z', session: hex('user-1-a'), cause: 'api', endUser: 'user-1' },
  { at: '2026-10-25T00:30:00Z', session: hex('user-2-a'), model: null, input: null, cost: null, outcome: 'lost' },
  { at: '2026-10-25T22:59:59Z', session: 'telegram:direct:7', cause: 'channel', model: 'new-model', cost: null },
  { at: '2026-10-25T23:00:00Z', session: null, outcome: 'cut' },
  { at: '2026-10-26T12:00:00Z', instance: second, session: hex('user-1-a') },
  { at: '2026-10-26T12:00:00Z', organization: other.id, instance: ofOther },
  // A day that Cairo's clocks begin at 1:00.
  { at: '2026-04-24T10:00:00Z' },
)
afterAll(() => chowder.close())

const range = 'from=2026-10-20T00:00:00Z&to=2026-11-01T00:00:00Z'
const read = (query: string, { key = acme.key, path = '/v1/organization/usage' } = {}) =>
  chowder.call('GET', `${path}?${query}`, { key })
const items = async (...args: Parameters<typeof read>) => {
  const { status, body } = await read(...args)
  expect([status, body]).toEqual([200, expect.any(Array)])
  return body
}

describe('the usage of an organization', () => {
  test('is one item of all its calls', async () => {
    expect(await items(range)).toEqual([
      {
        from: '2026-10-20T00:00:00.000000+00:00',
        to: '2026-11-01T00:00:00.000000+00:00',
        instance_id: null,
        session_id: null,
        session_key: null,
        end_user: null,
        model: null,
        provider: null,
        cause: null,
        metadata: {},
        calls: 6,
        cut_calls: 1,
        lost_calls: 1,
        calls_without_tokens: 1,
        calls_without_price: 1,
        input_tokens: 500,
        cache_read_tokens: 50,
        cache_write_tokens: 50,
        output_tokens: 50,
        reasoning_tokens: 50,
        estimated_cost: 1,
      },
    ])
    expect(await items('')).toEqual([]) // those of the last 30 days
  })

  test('has the days of a time zone, one of them with 25 hours, and only the part that is asked for', async () => {
    const days = await items(
      'from=2026-10-24T12:00:00%2B02:00&to=2026-10-26T18:00:00Z&bucket=day&time_zone=Europe/Berlin',
    )
    expect(days.map(({ from, to, calls }: Record<string, unknown>) => [from, to, calls])).toEqual([
      ['2026-10-24T10:00:00.000000+00:00', '2026-10-24T22:00:00.000000+00:00', 1],
      ['2026-10-24T22:00:00.000000+00:00', '2026-10-25T23:00:00.000000+00:00', 3],
      ['2026-10-25T23:00:00.000000+00:00', '2026-10-26T18:00:00.000000+00:00', 2],
    ])
    const hours = await items(`${range}&bucket=hour&time_zone=Europe/Berlin`)
    expect(hours).toHaveLength(6)
    expect(hours[2]).toMatchObject({
      from: '2026-10-25T00:00:00.000000+00:00',
      to: '2026-10-25T01:00:00.000000+00:00', // there are two hours from 2 to 3
    })
    const skipped = 'from=2026-04-20T00:00:00Z&to=2026-05-01T00:00:00Z&bucket=day&time_zone=Africa/Cairo'
    expect(await items(skipped)).toMatchObject([
      { from: '2026-04-23T22:00:00.000000+00:00', to: '2026-04-24T21:00:00.000000+00:00' },
    ])
    const months = await items(`${range}&bucket=month&time_zone=America/New_York`)
    expect(months).toMatchObject([{ calls: 6, from: '2026-10-20T00:00:00.000000+00:00' }])
  })

  test('is grouped by instances, sessions, models, end users, causes and labels', async () => {
    const by = async (group: string, ...names: string[]) =>
      (await items(`${range}&group_by=${group}`)).map((item: Record<string, unknown>) => [
        ...names.map((name) => item[name]),
        item.calls,
      ])
    expect(await by('instance', 'instance_id')).toEqual(
      [
        [first, 5],
        [second, 1],
      ].sort(),
    )
    expect(await by('session', 'session_id', 'session_key')).toEqual([
      [null, null, 1],
      ['user-1-a', hex('user-1-a'), 3],
      ['user-2-a', hex('user-2-a'), 1],
      [null, 'telegram:direct:7', 1],
    ])
    expect(await by('model', 'model')).toEqual([
      [null, 1],
      ['claude-haiku-4-5', 4],
      ['new-model', 1],
    ])
    expect(await by('end_user', 'end_user')).toEqual([
      [null, 5],
      ['user-1', 1],
    ])
    expect(await by('cause', 'cause')).toEqual([
      [null, 3],
      ['api', 2],
      ['channel', 1],
    ])
    expect(await by('provider', 'provider')).toEqual([['anthropic', 6]])
    expect(await by('metadata.customer&group_by=metadata.plan', 'metadata')).toEqual([
      [{ customer: 'c1', plan: 'pro' }, 5],
      [{ customer: 'c2', plan: null }, 1],
    ])
  })

  test('is that of the instances with labels', async () => {
    expect(await items(`${range}&metadata[customer]=c2`)).toMatchObject([{ calls: 1 }])
    expect(await items(`${range}&metadata[customer]=c2&metadata[plan]=pro`)).toEqual([])
  })

  test('comes in pages whose time ends now', async () => {
    await addCalls(
      { at: new Date(Date.now() - 60_000).toISOString(), model: 'a' },
      { at: new Date(Date.now() - 60_000).toISOString(), model: 'b' },
    )
    const { body, headers } = await read('group_by=model&limit=1')
    expect(body).toMatchObject([{ model: 'a' }])
    const { body: rest } = await read(`group_by=model&limit=1&cursor=${headers['x-next-cursor']}`)
    expect(rest).toMatchObject([{ model: 'b' }])
    await chowder.database.pool.query("DELETE FROM model_calls WHERE model IN ('a', 'b')")
  })

  test('comes in pages, which together are the export in lines', async () => {
    const query = `${range}&bucket=day&group_by=session&group_by=model`
    const all = await items(query)
    expect(all).toHaveLength(5)
    const paged: unknown[] = []
    for (let cursor: string | undefined = ''; cursor !== undefined; ) {
      const { body, headers } = await read(`${query}&limit=2${cursor && `&cursor=${cursor}`}`)
      expect(body.length).toBeLessThanOrEqual(2)
      paged.push(...body)
      cursor = headers['x-next-cursor']?.toString()
    }
    expect(paged).toEqual(all)
    const { body, headers } = await chowder.app.inject({
      url: `/v1/organization/usage?${query}&limit=1`,
      headers: { authorization: `Bearer ${acme.key}`, accept: 'application/x-ndjson' },
    })
    expect(headers['content-type']).toBe('application/x-ndjson')
    const lines = body.trimEnd().split('\n')
    expect(lines.map((line) => JSON.parse(line))).toEqual(all)
  })
})

test('pages go on after groups with labels of the greatest length', async () => {
  const team = await chowder.signUp()
  const labels = ['a', 'b'].map((first) => Object.fromEntries(['k', 'l'].map((name) => [name, first.repeat(512)])))
  for (const metadata of labels) {
    const instance = await addInstance(team.key, { metadata })
    await addCalls({ organization: team.id, instance, at: '2026-10-26T12:00:00Z' })
  }
  const query = `${range}&group_by=metadata.k&group_by=metadata.l&limit=1`
  const { headers } = await read(query, { key: team.key })
  const next = await items(`${query}&cursor=${headers['x-next-cursor']}`, { key: team.key })
  expect(next).toMatchObject([{ metadata: labels[1], calls: 1 }])
})

describe('an export', () => {
  const url = `/v1/organization/usage?${range}&group_by=session`
  const rows = 20_000
  const { pool } = chowder.database
  const open = async (signal: AbortSignal, as: string) =>
    fetch(base + url, { headers: { authorization: `Bearer ${as}`, accept: 'application/x-ndjson' }, signal })
  const held = async () =>
    (
      await pool.query(
        "SELECT FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()",
      )
    ).rowCount
  let base: string
  let team: { id: string; key: string }
  beforeAll(async () => {
    base = await chowder.app.listen({ port: 0, host: '127.0.0.1' })
    team = await chowder.signUp()
    // Without the triggers, which are made for the batches of a relay.
    await pool.query(`
      BEGIN; SET LOCAL session_replication_role = replica;
      INSERT INTO model_calls (id, organization_id, instance_id, provider, began_at, session, outcome)
      SELECT gen_random_uuid(), '${team.id}', '${newId()}', 'anthropic', '2026-10-26T12:00:00Z', 's' || n % ${rows}, 'answered'
      FROM generate_series(1, 50000) n;
      COMMIT`)
  })

  test('adds all calls up once, in one statement', async () => {
    const spy = vi.spyOn(pg.Connection.prototype as unknown as { parse(query: { text: string }): void }, 'parse')
    const response = await open(AbortSignal.timeout(60_000), team.key)
    const text = await response.text()
    const reads = spy.mock.calls.map(([query]) => query.text)
    spy.mockRestore()
    expect(text.trimEnd().split('\n')).toHaveLength(rows)
    expect(reads.filter((read) => read.includes('model_calls'))).toHaveLength(1)
    expect(await held()).toBe(0)
  })

  test('of a client that reads slowly is the only one of its organization, and ends with the client', async () => {
    const leaving = new AbortController()
    expect((await open(leaving.signal, team.key)).status).toBe(200)
    await until('the export to wait for its reader', async () => (await held()) === 1)
    const { status, body } = await read(range, { key: team.key })
    expect([status, body]).toMatchObject([200, [{ calls: 50_000 }]])
    const second = await open(AbortSignal.timeout(5000), team.key)
    expect([second.status, await second.json()]).toMatchObject([429, { error: { code: 'too_much_in_flight' } }])
    expect((await open(AbortSignal.timeout(5000), acme.key)).status).toBe(200)
    leaving.abort()
    await until('the connection to be free', async () => (await held()) === 0)
    const third = await until('the place of the export to be free', async () => {
      const response = await open(AbortSignal.timeout(60_000), team.key)
      return response.status === 200 && response
    })
    expect((await third.text()).trimEnd().split('\n')).toHaveLength(rows)
  })

  test('that cannot begin has a status', async () => {
    const response = await fetch(`${base}${url}&time_zone=Mars/Olympus`, {
      headers: { authorization: `Bearer ${team.key}`, accept: 'application/x-ndjson' },
    })
    expect(response.status).toBe(400)
    const all = readAllUsage(
      chowder.deps.db,
      {
        ...filterOf(
          acme.id,
          { ...Object.fromEntries(new URLSearchParams(range)), time_zone: 'UTC', limit: 1, bucket: 'day' },
          undefined,
          0,
        ),
        timeZone: 'Europe/Atlantis',
      },
      async () => {},
    )
    await expect(all).rejects.toMatchObject({ code: 'invalid_value', param: 'time_zone' })
  })
})

describe('the usage of an instance', () => {
  const path = () => `/v1/instances/${first}/usage`

  test('is its own', async () => {
    expect(await items(range, { path: path() })).toMatchObject([{ calls: 5 }])
    expect(await items(range, { path: `/v1/instances/${second}/usage` })).toMatchObject([{ calls: 1 }])
    expect((await read(range, { path: path(), key: other.key })).status).toBe(404)
  })

  test('is for a scoped key of the instance', async () => {
    const body = { name: 'reader', permissions: ['read'], instance_ids: [first] }
    const { raw_key: key } = (await chowder.call('POST', '/v1/keys', { key: acme.key, body })).body
    expect(await items(range, { path: path(), key })).toMatchObject([{ calls: 5 }])
    expect((await read(range, { path: `/v1/instances/${second}/usage`, key })).status).toBe(403)
    expect((await read(range, { key })).status).toBe(403)
  })
})

test('a time zone that only PostgreSQL does not know is refused, too', async () => {
  const filter = filterOf(
    acme.id,
    { ...Object.fromEntries(new URLSearchParams(range)), bucket: 'day', time_zone: 'UTC', limit: 1 },
    undefined,
    0,
  )
  const reading = readUsage(chowder.deps.db, { ...filter, timeZone: 'Europe/Atlantis' }, 1)
  await expect(reading).rejects.toMatchObject({ code: 'invalid_value', param: 'time_zone' })
})

describe('another organization', () => {
  test('sees its own calls only', async () => {
    expect(await items(`${range}&group_by=metadata.customer`, { key: other.key })).toMatchObject([
      { metadata: { customer: 'c1' }, calls: 1 },
    ])
  })

  test('keeps them when the first one is deleted, with all its calls', async () => {
    const gone = await chowder.signUp()
    await addCalls({ organization: gone.id, instance: newId(), at: '2026-10-26T12:00:00Z' })
    const worker = await chowder.startWorker()
    expect(
      (await chowder.call('DELETE', '/v1/organization', { key: gone.key, body: { name: 'Acme' } })).status,
    ).toBeLessThan(300)
    const count = async (id: string) =>
      (await chowder.database.pool.query('SELECT FROM model_calls WHERE organization_id = $1', [id])).rowCount
    await expect.poll(() => count(gone.id), { timeout: 10_000 }).toBe(0)
    expect(await count(other.id)).toBe(1)
    await worker.stop()
  })
})

test.each([
  ['from=yesterday', 'invalid_value', 'from'],
  ['to=2026-02-30T00:00:00Z', 'invalid_value', 'to'],
  ['from=2026-02-02T00:00:00Z&to=2026-02-02T00:00:00Z', 'invalid_value', 'from'],
  ['from=2024-02-02T00:00:00Z&to=2026-02-02T00:00:00Z', 'invalid_value', 'from'],
  ['time_zone=Mars/Olympus', 'invalid_value', 'time_zone'],
  ['time_zone=%2B02:00', 'invalid_value', 'time_zone'],
  ['bucket=week', 'validation_failed', 'bucket'],
  ['group_by=color', 'validation_failed', 'group_by.0'],
  ['group_by=model&group_by=model', 'validation_failed', 'group_by'],
  ['cursor=abc', 'invalid_value', 'cursor'],
  [`cursor=${Buffer.from('["2026-02-02T00:00:00Z","x"]').toString('base64url')}`, 'invalid_value', 'cursor'],
])('%s is refused: %s', async (query, code, param) => {
  const { status, body } = await read(query)
  expect([status, body.error.code, body.error.param]).toEqual([code === 'validation_failed' ? 422 : 400, code, param])
})
