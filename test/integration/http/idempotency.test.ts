import { randomUUID } from 'node:crypto'
import pg from 'pg'
import { afterAll, beforeEach, describe, expect, test } from 'vitest'
import { clearExpiredAnswers } from '#http/idempotency.ts'
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

const post = (path: string, idempotencyKey: string, body: unknown, as = key) =>
  chowder.call('POST', path, {
    key: as,
    ...(body !== undefined && { body }),
    headers: { 'idempotency-key': idempotencyKey },
  })
const instancesOf = async (as = key) => (await chowder.call('GET', '/v1/instances', { key: as })).body
const stored = async () =>
  (await chowder.database.pool.query('SELECT * FROM idempotency_keys WHERE organization_id = $1', [organizationId]))
    .rows

const creating = {
  '/v1/instances': () => ({ name: 'agent', metadata: { b: '1', a: '2' } }),
  '/v1/keys': (instanceId: string) => ({ name: 'k', permissions: ['read'], instance_ids: [instanceId] }),
  '/v1/organization/keys': () => ({ name: 'k' }),
}

describe.each(Object.keys(creating) as (keyof typeof creating)[])('POST %s with an Idempotency-Key', (path) => {
  test('repeats the answer, marked as replayed, and creates nothing', async () => {
    const [{ id }] = [(await chowder.call('POST', '/v1/instances', { key, body: { name: 'first' } })).body]
    const body = creating[path](id)
    const first = await post(path, 'same', body)
    expect([first.status, first.headers['idempotent-replayed']]).toEqual([201, undefined])
    const listed = (await chowder.call('GET', path, { key })).body.length
    const again = await post(path, 'same', body)
    expect([again.status, again.headers['idempotent-replayed']]).toEqual([201, 'true'])
    expect(again.body).toEqual(first.body)
    expect((await chowder.call('GET', path, { key })).body).toHaveLength(listed)
  })

  test('refuses the key with another body, and creates nothing', async () => {
    const [{ id }] = [(await chowder.call('POST', '/v1/instances', { key, body: { name: 'first' } })).body]
    const body = creating[path](id)
    await post(path, 'same', body)
    const other = await post(path, 'same', { ...body, name: 'another' })
    expect(other.status).toBe(422)
    expect(other.body.detail).toEqual([
      { loc: ['header', 'idempotency-key'], msg: expect.stringContaining('another request'), type: 'idempotency' },
    ])
    const names = (await chowder.call('GET', path, { key })).body.map(({ name }: { name: string }) => name)
    expect(names).not.toContain('another')
  })
})

test('of 100 concurrent duplicates one creates, and all get the same answer', async () => {
  const answers = await Promise.all(Array.from({ length: 100 }, () => post('/v1/instances', 'burst', { name: 'one' })))
  expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([201]))
  expect(new Set(answers.map(({ body }) => JSON.stringify(body))).size).toBe(1)
  expect(answers.filter(({ headers }) => headers['idempotent-replayed'] === undefined)).toHaveLength(1)
  expect(await instancesOf()).toHaveLength(1)
})

test('100 different keys create 100 instances', async () => {
  const answers = await Promise.all(
    Array.from({ length: 100 }, (_, i) => post('/v1/instances', `own-${i}`, { name: 'one' })),
  )
  expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([201]))
  expect(await instancesOf()).toHaveLength(100)
})

test('two organizations can use the same key', async () => {
  const theirs = await chowder.signUp()
  const mine = await post('/v1/instances', 'same', { name: 'mine' })
  const other = await post('/v1/instances', 'same', { name: 'theirs' }, theirs.key)
  expect([mine.status, other.status]).toEqual([201, 201])
  expect((await instancesOf(theirs.key)).map(({ name }: { name: string }) => name)).toEqual(['theirs'])
})

test('all keys of an organization replay each other’s answers', async () => {
  const { body } = await chowder.call('POST', '/v1/organization/keys', { key, body: { name: 'second' } })
  const first = await post('/v1/instances', 'same', { name: 'one' })
  expect((await post('/v1/instances', 'same', { name: 'one' }, body.raw_key)).body).toEqual(first.body)
})

test('a scoped key neither reads nor takes the answers of another key', async () => {
  const { id } = (await chowder.call('POST', '/v1/instances', { key, body: { name: 'one' } })).body
  await chowder.deps.sandboxes.create({ id } as never, AbortSignal.timeout(1000))
  const grants = { name: 'k', permissions: ['files'], instance_ids: [id] }
  const scoped = async () => (await chowder.call('POST', '/v1/keys', { key, body: grants })).body.raw_key as string
  const [one, two] = [await scoped(), await scoped()]
  const mkdir = async (as: string, path: string) => {
    const { status, headers } = await post(`/v1/instances/${id}/files/mkdir`, 'same', { path }, as)
    return [status, headers['idempotent-replayed']]
  }
  expect(await mkdir(one, 'a')).toEqual([204, undefined])
  expect(await mkdir(two, 'a')).toEqual([204, undefined])
  expect(await mkdir(key, 'b')).toEqual([204, undefined])
  expect(await mkdir(one, 'a')).toEqual([204, 'true'])
})

test('the order of the fields of the body does not matter; everything else does, and the route', async () => {
  await post('/v1/instances', 'same', { name: 'one', metadata: { a: '1', b: '2' } })
  const turned = await post('/v1/instances', 'same', { metadata: { b: '2', a: '1' }, name: 'one' })
  expect([turned.status, turned.headers['idempotent-replayed']]).toEqual([201, 'true'])
  for (const body of [{ name: 'one' }, { name: 'one', metadata: { a: '2', b: '1' } }]) {
    expect((await post('/v1/instances', 'same', body)).status).toBe(422)
  }
  await post('/v1/organization/keys', 'route', { name: 'one' })
  expect((await post('/v1/instances', 'route', { name: 'one' })).status).toBe(422)
})

describe('a POST whose work is in no transaction', () => {
  let id: string
  beforeEach(async () => {
    id = (await chowder.call('POST', '/v1/instances', { key, body: { name: 'one' } })).body.id
    await become('ready_at = now()')
  })
  const become = (columns: string) =>
    chowder.database.pool.query(`UPDATE instances SET ${columns}, observed_generation = generation WHERE id = $1`, [id])
  const generation = async () =>
    (await chowder.database.pool.query('SELECT generation FROM instances WHERE id = $1', [id])).rows[0].generation
  const restart = (idempotencyKey: string, of = id) => post(`/v1/instances/${of}/restart`, idempotencyKey, undefined)

  test('is carried out once, and its answer is repeated, also after the state has changed', async () => {
    const first = await restart('same')
    expect([first.status, first.headers['idempotent-replayed'], await generation()]).toEqual([200, undefined, 2])
    await become('ready_at = now()')
    const again = await restart('same')
    expect([again.status, again.headers['idempotent-replayed'], again.body]).toEqual([200, 'true', first.body])
    expect(await generation()).toBe(2)
    const { body: events } = await chowder.call('GET', `/v1/instances/${id}/events?type=instance.restart`, { key })
    expect(events).toHaveLength(1)
    expect((await restart('another')).headers['idempotent-replayed']).toBeUndefined()
    expect(await generation()).toBe(3)
  })

  test('does not replay the answer for another path, such as another instance', async () => {
    const other = (await chowder.call('POST', '/v1/instances', { key, body: { name: 'two' } })).body.id
    await restart('same')
    expect((await restart('same', other)).status).toBe(422)
    expect((await post(`/v1/instances/${id}/stop`, 'same', undefined)).status).toBe(422)
    expect((await chowder.call('GET', `/v1/instances/${other}`, { key })).body.status).toBe('provisioning')
  })

  test('an answer without a body is repeated', async () => {
    const mkdir = (idempotencyKey: string, path = 'a') =>
      post(`/v1/instances/${id}/files/mkdir`, idempotencyKey, { path })
    await chowder.deps.sandboxes.create({ id } as never, AbortSignal.timeout(1000))
    expect((await mkdir('empty')).status).toBe(204)
    const { status, body, headers } = await mkdir('empty')
    expect([status, body, headers['idempotent-replayed']]).toEqual([204, undefined, 'true'])
    expect((await mkdir('empty', 'b')).status).toBe(422)
  })

  test('of 20 at once one is carried out', async () => {
    const answers = await Promise.all(Array.from({ length: 20 }, () => restart('burst')))
    expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([200]))
    expect(answers.filter(({ headers }) => headers['idempotent-replayed'] === undefined)).toHaveLength(1)
    expect(await generation()).toBe(2)
  })

  test('a failure frees the key', async () => {
    await become(`ready_at = NULL, desired_state = 'stopped'`)
    expect((await restart('later')).status).toBe(409)
    expect(await stored()).toEqual([])
    await become(`ready_at = now(), desired_state = 'running'`)
    const { status, headers } = await restart('later')
    expect([status, headers['idempotent-replayed']]).toEqual([200, undefined])
  })

  test('a claim of a process that died ends, and until then a duplicate is a 409', async () => {
    await restart('dead')
    const { pool } = chowder.database
    const other = randomUUID()
    await pool.query('UPDATE idempotency_keys SET sealed_answer = NULL, process_id = $2 WHERE organization_id = $1', [
      organizationId,
      other,
    ])
    const beaten = (id: string, ago: string) =>
      pool.query(
        `INSERT INTO processes (id, role, since, seen_at) VALUES ($1, 'api', now() - interval '1 hour', now() - $2::interval)
         ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at`,
        [id, ago],
      )
    await beaten(randomUUID(), '0 seconds')
    await beaten(other, '2 seconds')
    const { status, body, headers } = await restart('dead')
    expect([status, headers['retry-after'], body.detail]).toEqual([409, '1', expect.stringContaining('in progress')])
    await beaten(other, '16 seconds')
    await become('ready_at = now()')
    expect([(await restart('dead')).status, await generation()]).toEqual([200, 3])
  })

  test('keys are not taken by uploads and client tokens: the document names the calls that take them', async () => {
    const { body: document } = await chowder.call('GET', '/openapi.json')
    const takes = Object.entries(document.paths as Record<string, { post?: { parameters?: { name: string }[] } }>)
      .filter(([, { post: operation }]) => operation)
      .map(([path, { post: operation }]) => [
        path,
        operation?.parameters?.some(({ name }) => name === 'idempotency-key'),
      ])
    const without = takes.filter(([, does]) => !does).map(([path]) => path)
    expect(without.sort()).toEqual([
      '/v1/hooks/{hook_id}',
      '/v1/instances/{instance_id}/client_tokens',
      '/v1/instances/{instance_id}/files/upload',
      '/v1/organization/signup',
      '/v1/webhooks/stripe',
    ])
  })
})

test('an error is not stored: the same request with the same key can succeed later', async () => {
  const bare = await chowder.signUp({ providerKey: null })
  const refused = await post('/v1/instances', 'later', { name: 'one' }, bare.key)
  expect(refused.status).toBe(400)
  await chowder.call('PATCH', '/v1/organization', { key: bare.key, body: { model_api_keys: { anthropic: 'sk-1' } } })
  const { status, headers } = await post('/v1/instances', 'later', { name: 'one' }, bare.key)
  expect([status, headers['idempotent-replayed']]).toEqual([201, undefined])
})

test('a replay under a full plan is the first answer, and does not count against the limit', async () => {
  await chowder.database.pool.query('UPDATE organizations SET instance_limit = 1 WHERE id = $1', [organizationId])
  const first = await post('/v1/instances', 'one', { name: 'one' })
  expect((await post('/v1/instances', 'one', { name: 'one' })).body).toEqual(first.body)
  expect((await post('/v1/instances', 'two', { name: 'one' })).status).toBe(402)
  expect(await stored()).toHaveLength(1)
})

test.each([
  ['', 'empty'],
  [' ', 'blank'],
  ['a b', 'with a space'],
  ['ü', 'not ASCII'],
  ['k'.repeat(256), 'too long'],
])('the key %j (%s) is a 422 and creates nothing', async (bad) => {
  const { status, body } = await post('/v1/instances', bad, { name: 'one' })
  expect([status, body.detail?.[0]?.loc]).toEqual([422, ['header', 'idempotency-key']])
  expect(await instancesOf()).toEqual([])
})

test('the longest key, with every allowed character, is accepted', async () => {
  const signs = String.fromCharCode(...Array.from({ length: 94 }, (_, i) => 0x21 + i))
  expect((await post('/v1/instances', signs.repeat(3).slice(0, 255), { name: 'one' })).status).toBe(201)
})

test('a client that left before the answer gets it when it repeats the request', async () => {
  const url = await listening()
  const creates = await holdCreates()
  const leaving = new AbortController()
  const lost = fetch(`${url}/v1/instances`, {
    method: 'POST',
    headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json', 'idempotency-key': 'lost' },
    body: JSON.stringify({ name: 'one' }),
    signal: leaving.signal,
  })
  await until('the create to wait for the lock', waitsForLock)
  leaving.abort()
  await expect(lost).rejects.toThrow()
  await creates.letGo()
  const { status, body } = await post('/v1/instances', 'lost', { name: 'one' })
  expect(status).toBe(201)
  expect(await instancesOf()).toMatchObject([{ id: body.id }])
})

test('when its database connection dies in the middle, nothing is created, the process survives, and a retry creates', async () => {
  const creates = await holdCreates()
  const cut = post('/v1/instances', 'cut', { name: 'one' })
  await until('the create to wait for the lock', waitsForLock)
  await creates.cut()
  expect((await cut).status).toBe(503)
  await creates.letGo()
  expect([await instancesOf(), await stored()]).toEqual([[], []])
  const { status, headers } = await post('/v1/instances', 'cut', { name: 'one' })
  expect([status, headers['idempotent-replayed']]).toEqual([201, undefined])
})

describe('a duplicate of a request that is in progress', () => {
  /** A create that has claimed its key and waits for a lock. */
  async function inProgress(idempotencyKey: string) {
    const creates = await holdCreates()
    const answer = post('/v1/instances', idempotencyKey, { name: 'one' })
    await until('the create to wait for the lock', waitsForLock)
    return { answer, ...creates }
  }

  test('waits and gets the same answer', async () => {
    const first = await inProgress('succeeds')
    const answer = post('/v1/instances', 'succeeds', { name: 'one' })
    await first.letGo()
    const { status, body, headers } = await answer
    expect([status, headers['idempotent-replayed']]).toEqual([201, 'true'])
    expect(body).toEqual((await first.answer).body)
  })

  test('waits, and creates when the first one fails', async () => {
    const first = await inProgress('fails')
    const answer = post('/v1/instances', 'fails', { name: 'one' })
    await first.cut()
    expect((await first.answer).status).toBe(503)
    await first.letGo()
    const { status, headers } = await answer
    expect([status, headers['idempotent-replayed']]).toEqual([201, undefined])
    expect(await instancesOf()).toHaveLength(1)
  })

  test('is a 409 with Retry-After after 10 s, and creates nothing', async () => {
    const first = await inProgress('slow')
    const began = performance.now()
    const { status, body, headers } = await post('/v1/instances', 'slow', { name: 'one' })
    expect([status, headers['retry-after']]).toEqual([409, '1'])
    expect(body.detail).toContain('Idempotency-Key')
    expect(performance.now() - began).toBeGreaterThan(9900)
    await first.letGo()
    expect((await first.answer).status).toBe(201)
    expect(await instancesOf()).toHaveLength(1)
  })

  test('does not delay others, also when 100 of them wait', async () => {
    const other = await chowder.signUp()
    const first = await inProgress('crowd')
    const answers = Promise.all(Array.from({ length: 100 }, () => post('/v1/instances', 'crowd', { name: 'one' })))
    for (let i = 0; i < 2; i += 1) {
      const began = performance.now()
      expect((await chowder.call('GET', '/v1/subscription', { key: other.key })).status).toBe(200)
      expect(performance.now() - began).toBeLessThan(4500) // a duplicate that held a connection would hold it for 10 s
    }
    await first.letGo()
    expect(new Set((await answers).map(({ status }) => status))).toEqual(new Set([201]))
    expect(await instancesOf()).toHaveLength(1)
  })
})

describe('after 24 hours', () => {
  const expire = () =>
    chowder.database.pool.query(
      `UPDATE idempotency_keys SET expires_at = now() - interval '1 s' WHERE organization_id = $1`,
      [organizationId],
    )

  test('the key can be used again, for the same request or another', async () => {
    await post('/v1/instances', 'k', { name: 'one' })
    await expire()
    const other = await post('/v1/instances', 'k', { name: 'two' })
    expect([other.status, other.headers['idempotent-replayed'], other.body.name]).toEqual([201, undefined, 'two'])
    expect((await post('/v1/instances', 'k', { name: 'two' })).body).toEqual(other.body)
  })

  test('expired answers are deleted, and younger ones are kept', async () => {
    const { pool } = chowder.database
    await pool.query(
      `INSERT INTO idempotency_keys (organization_id, key, request_hash, expires_at)
       SELECT $1, 'old-' || i, '\\x00', now() - interval '1 s' FROM generate_series(1, 1100) i`,
      [organizationId],
    )
    await post('/v1/instances', 'young', { name: 'one' })
    await clearExpiredAnswers(chowder.database.db)
    expect((await stored()).map((row) => row.key)).toEqual(['young'])
    const [{ hours }] = (
      await pool.query(
        `SELECT extract(epoch FROM expires_at - now())::float8 / 3600 AS hours FROM idempotency_keys WHERE key = 'young'`,
      )
    ).rows
    expect(hours).toBeGreaterThan(23.9)
    expect(hours).toBeLessThanOrEqual(24)
  })
})

test('a stored answer is encrypted, with the key in it', async () => {
  const { body } = await post('/v1/organization/keys', 'secret', { name: 'k' })
  const rows = JSON.stringify(await stored())
  expect(body.raw_key).toMatch(/^chd_org_/)
  expect(rows).not.toContain(body.raw_key)
  expect(rows).not.toContain('chd_org_')
})

test('a transaction that fails leaves no connection behind', async () => {
  const { db, pool } = chowder.database
  for (let i = 0; i < 20; i += 1) {
    await expect(db.transaction(() => Promise.reject(new Error('no')))).rejects.toThrow('no')
  }
  await until('all connections to be back', () => pool.idleCount === pool.totalCount)
})

/** Holds creates of the organization before their commit, by a lock on its row. */
async function holdCreates() {
  const holder = new pg.Client(chowder.database.connection)
  await holder.connect()
  await holder.query('BEGIN')
  await holder.query('SELECT 1 FROM organizations WHERE id = $1 FOR NO KEY UPDATE', [organizationId])
  return {
    /** Ends the connections of the held creates. */
    cut: () =>
      holder.query(
        `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()`,
      ),
    async letGo() {
      await holder.query('COMMIT')
      await holder.end()
    },
  }
}

const waitsForLock = async () => {
  const { rows } = await chowder.database.pool.query(
    `SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()`,
  )
  return rows.length > 0
}

let url: string | undefined
const listening = async () => {
  url ??= await chowder.app.listen({ port: 0, host: '127.0.0.1' })
  return url
}
