import { readFile } from 'node:fs/promises'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { eventTypes } from '#history/event-types.ts'
import { publicStatus } from '#instances/status.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { startFakeGateway } from '../../support/fake-gateway.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const gateway = await startFakeGateway({})
const driver = new FakeDriver(() => gateway.endpoint)

const chowder = await openTestChowder({ sandboxes: driver })
const organization = await chowder.signUp()
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})

type Method = 'GET' | 'POST' | 'PATCH' | 'PUT' | 'DELETE'
const call = (method: Method, url: string, body?: unknown, headers: Record<string, string> = {}) =>
  chowder.call(method, url, { key: organization.key, headers, ...(body !== undefined && { body }) })
const create = async () => (await call('POST', '/v1/instances', { name: 'a' })).body.id as string
const eventsOf = async (id: string) => (await call('GET', `/v1/instances/${id}/events`)).body
const typesOf = async (id: string): Promise<string[]> =>
  (await eventsOf(id)).map(({ type }: { type: string }) => type).reverse()

describe('the history of an instance', () => {
  test('names the actor, the request and the result of each change, each once and in order', async () => {
    const id = await create()
    const worker = await chowder.startWorker()
    await until('running', async () => (await call('GET', `/v1/instances/${id}`)).body.status === 'running')
    await call('POST', `/v1/instances/${id}/stop`, undefined, { 'x-request-id': 'my-stop' })
    await call('PATCH', `/v1/instances/${id}`, { name: 'b' })
    await call('DELETE', `/v1/instances/${id}`)
    await until('the end', async () => (await typesOf(id)).includes('instance.destroyed'))
    await worker.stop()
    const listed = await eventsOf(id)
    expect(await typesOf(id)).toEqual([
      'instance.create',
      'instance.running',
      'instance.stop',
      'instance.stopped',
      'instance.update',
      'instance.delete',
      'instance.destroyed',
    ])
    const [created, running, stop] = listed.toReversed()
    expect(created).toMatchObject({
      from_status: null,
      to_status: 'provisioning',
      generation: 1,
      actor: { type: 'key' },
    })
    expect(running).toMatchObject({
      from_status: 'provisioning',
      to_status: 'running',
      actor: { type: 'worker', id: null },
    })
    expect(stop).toMatchObject({ from_status: 'running', to_status: 'stopped', request_id: 'my-stop', generation: 2 })
    const [key] = (await call('GET', '/v1/organization/keys')).body
    expect(stop.actor).toEqual({ type: 'key', id: key.id })
  })

  test('is a chain: each event begins with the status that the event before ended with', async () => {
    const id = await create()
    driver.fail({ method: 'start', times: 2 })
    const worker = await chowder.startWorker()
    await until('running', async () => (await call('GET', `/v1/instances/${id}`)).body.status === 'running', 20_000)
    driver.die(id)
    await until(
      'running again',
      async () => (await typesOf(id)).filter((type) => type === 'instance.running').length === 2,
      20_000,
    )
    await worker.stop()
    const listed = (await eventsOf(id)).toReversed()
    for (const [index, event] of listed.entries()) expect(event.from_status).toBe(listed[index - 1]?.to_status ?? null)
    const { rows } = await chowder.database.pool.query('SELECT * FROM instances WHERE id = $1', [id])
    const [{ desired_state: desiredState, generation, observed_generation: observedGeneration, ready_at: readyAt }] =
      rows
    expect(listed.at(-1).to_status).toBe(publicStatus({ desiredState, generation, observedGeneration, readyAt }))
    const types = await typesOf(id)
    expect(types.filter((type) => type === 'instance.attempt_failed').length).toBeGreaterThan(0)
    expect(types).toContain('instance.gateway_ended')
    expect(types).toContain('instance.due')
    await call('DELETE', `/v1/instances/${id}`)
  })

  test('has no event for a refused request, and none for a replayed response', async () => {
    const one = await call('POST', '/v1/instances', { name: 'a' }, { 'idempotency-key': 'once' })
    await call('POST', '/v1/instances', { name: 'a' }, { 'idempotency-key': 'once' })
    const { id } = one.body
    expect((await call('POST', `/v1/instances/${id}/start`)).status).toBe(409)
    expect((await call('PATCH', `/v1/instances/${id}`, { name: '' })).status).toBe(422)
    expect(await typesOf(id)).toEqual(['instance.create'])
    await call('DELETE', `/v1/instances/${id}`)
    await call('DELETE', `/v1/instances/${id}`)
    expect(await typesOf(id)).toEqual(['instance.create', 'instance.delete'])
  })

  test('comes in pages, and only for its own organization', async () => {
    const id = await create()
    for (let i = 0; i < 4; i += 1) await call('PATCH', `/v1/instances/${id}`, { name: `n${i}` })
    const seen: number[] = []
    let url: string | undefined = `/v1/instances/${id}/events?limit=2`
    while (url) {
      const page = await call('GET', url)
      seen.push(...page.body.map((event: { id: number }) => event.id))
      const next = /<([^>]+)>/.exec(String(page.headers.link ?? ''))?.[1]
      url = next && new URL(next).pathname + new URL(next).search
    }
    expect(seen).toHaveLength(5)
    expect(seen).toEqual(seen.toSorted((a, b) => b - a))
    const stranger = await chowder.signUp()
    expect((await chowder.call('GET', `/v1/instances/${id}/events`, { key: stranger.key })).status).toBe(404)
    expect((await call('GET', `/v1/instances/${id}/events?cursor=bogus`)).status).toBe(400)
    await call('DELETE', `/v1/instances/${id}`)
  })
})

describe('the history of an organization', () => {
  test('has its keys, its files and its deletion; then the texts that were its own are erased', async () => {
    const tenant = await chowder.signUp()
    const as = (method: Method, url: string, body?: unknown) =>
      chowder.call(method, url, { key: tenant.key, ...(body !== undefined && { body }) })
    const { body: instance } = await as('POST', '/v1/instances', { name: 'a' })
    const worker = await chowder.startWorker()
    await until('running', async () => (await as('GET', `/v1/instances/${instance.id}`)).body.status === 'running')
    const { body: key } = await as('POST', '/v1/keys', {
      name: 'k',
      instance_ids: [instance.id],
      permissions: ['read'],
    })
    await as('PATCH', `/v1/keys/${key.id}`, { name: 'l' })
    await as('DELETE', `/v1/keys/${key.id}`)
    await as('PUT', `/v1/instances/${instance.id}/files/content`, { path: 'notes.md', content: 'x' })
    const { body: listed } = await as('GET', '/v1/organization/events')
    expect(listed.map(({ type }: { type: string }) => type).reverse()).toEqual([
      'organization.create',
      'organization.update',
      'instance.create',
      'instance.running',
      'key.create',
      'key.update',
      'key.revoke',
      'file.write',
    ])
    expect(listed[0]).toMatchObject({ instance_id: instance.id, subject: 'notes.md', from_status: null })
    expect(listed[1]).toMatchObject({ instance_id: null, subject: key.id })
    // A parameter that the route does not have is refused, and is in no event.
    const strange = [
      await as('PUT', `/v1/instances/${instance.id}/files/content?path=%00&channel=telegram`, {
        path: 'a',
        content: '',
      }),
      await as('DELETE', `/v1/instances/${instance.id}/files?path=notes.md&channel=%00`),
      await as('PATCH', '/v1/organization?path=%00', { name: 'Acme' }),
    ]
    expect(strange.map(({ status }) => status)).toEqual([422, 422, 422])
    await as('DELETE', `/v1/instances/${instance.id}/files?path=notes.md`)
    const { body: later } = await as('GET', '/v1/organization/events')
    expect(later.slice(0, 2).map(({ type, subject }: Record<string, unknown>) => [type, subject])).toEqual([
      ['file.delete', 'notes.md'],
      ['file.write', 'notes.md'],
    ])
    await as('DELETE', '/v1/organization', { name: 'Acme' })
    const left = () =>
      chowder.database.pool
        .query('SELECT type, subject, reason FROM events WHERE organization_id = $1 ORDER BY id', [tenant.id])
        .then(({ rows }) => rows)
    await until('it to be erased', async () => (await left()).some(({ type }) => type === 'organization.erased'))
    await worker.stop()
    for (const { subject, reason } of await left()) expect([subject, reason]).toEqual([null, null])
  })
})

describe('the history, read forward', () => {
  interface Listed {
    id: number
    type: string
  }
  let tenant: { id: string; key: string }
  const list = async (query: string) => {
    const answer = await chowder.call('GET', `/v1/organization/events?${query}`, { key: tenant.key })
    expect(answer.status).toBe(200)
    return answer.body as Listed[]
  }
  /** Begins a transaction that writes an event and stays open. */
  const openWriter = async (subject: string) => {
    const client = await chowder.database.pool.connect()
    await client.query('BEGIN')
    const { rows } = await client.query(
      `INSERT INTO events (organization_id, type, subject, actor_type) VALUES ($1, 'key.update', $2, 'worker') RETURNING id`,
      [tenant.id, subject],
    )
    const end = async (how: 'COMMIT' | 'ROLLBACK') => {
      await client.query(how)
      client.release()
    }
    return { id: Number(rows[0].id), end }
  }
  beforeAll(async () => {
    tenant = await chowder.signUp()
  })

  test('never skips an event that is committed after a later one', async () => {
    const [before] = await list('order=asc&after=0')
    // The second transaction gets its number first: what matters is the order of the ids.
    const [first, second] = [await chowder.database.pool.connect(), await chowder.database.pool.connect()]
    const insert = `INSERT INTO events (organization_id, type, actor_type) VALUES ($1, 'key.update', 'worker') RETURNING id`
    await Promise.all([first.query('BEGIN'), second.query('BEGIN')])
    await second.query('SELECT pg_current_xact_id()')
    const { id: earlier } = (await first.query(insert, [tenant.id])).rows[0]
    const { id: later } = (await second.query(insert, [tenant.id])).rows[0]
    await second.query('COMMIT')
    const newest = (await list('limit=1')).map(({ id }) => id)
    const whileOpen = await list('order=asc&after=0')
    await first.query('COMMIT')
    const afterwards = await list(`after=${whileOpen.at(-1)?.id}`)
    first.release()
    second.release()
    expect(newest).toEqual([Number(later)])
    expect(whileOpen[0]).toEqual(before)
    expect(whileOpen.map(({ id }) => id)).not.toContain(Number(later))
    expect(afterwards.map(({ id }) => id)).toEqual([Number(earlier), Number(later)])
  })

  test('is complete again after a rollback, also of a savepoint', async () => {
    const writer = await openWriter('rolled back')
    const last = await openWriter('kept')
    await last.end('COMMIT')
    expect(await list(`after=${writer.id}`)).toEqual([])
    const operations = await readFile(new URL('../../../docs/operations.md', import.meta.url), 'utf8')
    const lookFor = /```sql\n(SELECT pid, [^`]+)```/.exec(operations)?.[1] ?? ''
    // Requests of Chowder's own may be between two statements at this moment.
    expect((await chowder.database.pool.query(lookFor)).rows).toContainEqual(
      expect.objectContaining({ state: 'idle in transaction', query: expect.stringContaining('INSERT INTO events') }),
    )
    await writer.end('ROLLBACK')
    expect((await list(`after=${writer.id}`)).map(({ id }) => id)).toEqual([last.id])

    const client = await chowder.database.pool.connect()
    const insert = `INSERT INTO events (organization_id, type, actor_type) VALUES ($1, 'key.update', 'worker') RETURNING id`
    await client.query('BEGIN; SAVEPOINT s')
    await client.query(insert, [tenant.id])
    await client.query('ROLLBACK TO s')
    const { id } = (await client.query(insert, [tenant.id])).rows[0]
    const other = await openWriter('later')
    await other.end('COMMIT')
    expect(await list(`after=${last.id}`)).toEqual([])
    await client.query('COMMIT')
    client.release()
    expect((await list(`after=${last.id}`)).map((event) => event.id)).toEqual([Number(id), other.id])
  })

  test('is not held up by long transactions that write no event, such as those of a backup', async () => {
    const [backup, other] = [await chowder.database.pool.connect(), await chowder.database.pool.connect()]
    await backup.query('BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT count(*) FROM events')
    await other.query('BEGIN; UPDATE organizations SET updated_at = now() WHERE false; SELECT pg_current_xact_id()')
    const { id, end } = await openWriter('while they run')
    await end('COMMIT')
    expect((await list(`after=${id - 1}`)).map((event) => event.id)).toEqual([id])
    for (const client of [backup, other]) {
      await client.query('ROLLBACK')
      client.release()
    }
  })

  test('comes in pages, in either order, without a gap or a double', async () => {
    const all = (await list('after=0')).map(({ id }) => id)
    expect(all.length).toBeGreaterThan(5)
    expect(all).toEqual(all.toSorted((a, b) => a - b))
    for (const order of ['asc', 'desc']) {
      const seen: number[] = []
      let cursor: string | undefined = ''
      while (cursor !== undefined) {
        const { body, headers } = await chowder.call(
          'GET',
          `/v1/organization/events?after=${all[0]}&order=${order}&limit=2${cursor}`,
          { key: tenant.key },
        )
        seen.push(...body.map(({ id }: Listed) => id))
        cursor = headers['x-next-cursor'] === undefined ? undefined : `&cursor=${headers['x-next-cursor']}`
      }
      expect(order === 'asc' ? seen : seen.toReversed()).toEqual(all.slice(1))
    }
  })

  test('is filtered by type, request and instance', async () => {
    const as = (method: Method, url: string, body?: unknown, id = 'some-request') =>
      chowder.call(method, url, {
        key: tenant.key,
        headers: { 'x-request-id': id },
        ...(body !== undefined && { body }),
      })
    const [one, two] = [
      (await as('POST', '/v1/instances', { name: 'a' }, 'first')).body.id as string,
      (await as('POST', '/v1/instances', { name: 'b' })).body.id as string,
    ]
    await as('PATCH', `/v1/instances/${one}`, { name: 'c' }, 'first')
    await as('DELETE', `/v1/instances/${one}`)
    const seen = async (query: string) =>
      (await list(`order=asc&${query}`)).map(({ type, ...event }) => [
        type,
        'instance_id' in event && event.instance_id,
      ])
    expect(await seen(`instance_id=${one}`)).toEqual([
      ['instance.create', one],
      ['instance.update', one],
      ['instance.delete', one],
    ])
    expect(await seen('type=instance.create')).toEqual([
      ['instance.create', one],
      ['instance.create', two],
    ])
    expect(await seen(`type=instance.create&type=instance.delete&instance_id=${one.toUpperCase()}`)).toEqual([
      ['instance.create', one],
      ['instance.delete', one],
    ])
    expect(await seen('type=instance.*&limit=3')).toEqual([
      ['instance.create', one],
      ['instance.create', two],
      ['instance.update', one],
    ])
    expect(await seen('type=organization.create&type=instance.delete')).toEqual([
      ['organization.create', null],
      ['instance.delete', one],
    ])
    expect(await seen('request_id=first')).toEqual([
      ['instance.create', one],
      ['instance.update', one],
    ])
    expect(await seen('request_id=first&type=instance.create')).toEqual([['instance.create', one]])
    expect(await seen('request_id=unknown')).toEqual([])
    expect(await seen('instance_id=nonsense')).toEqual([])
    const { body: foreign } = await call('GET', `/v1/organization/events?instance_id=${one}`)
    expect(foreign).toEqual([])
    const { body: own } = await as('GET', `/v1/instances/${one}/events?type=instance.delete&order=asc&after=0`)
    expect(own).toMatchObject([{ type: 'instance.delete', instance_id: one }])
    for (const query of ['type=instance.nothing', 'type=*', 'after=-1', 'after=x', 'order=up', 'request_id=']) {
      expect((await as('GET', `/v1/organization/events?${query}`)).status, query).toBe(422)
    }
  })
})

test('every type that was recorded is one of the documented ones', async () => {
  const { rows } = await chowder.database.pool.query('SELECT DISTINCT type FROM events')
  expect(rows.length).toBeGreaterThan(10)
  for (const { type } of rows) expect(eventTypes).toContain(type)
})

test('the database and the code compute the same status of a row', async () => {
  const { pool } = chowder.database
  for (const desiredState of ['running', 'stopped', 'terminated'] as const)
    for (const observedGeneration of [1, 2])
      for (const readyAt of [null, new Date()]) {
        const { rows } = await pool.query(
          `SELECT instance_status(jsonb_populate_record(NULL::instances, $1)) AS status`,
          [{ desired_state: desiredState, generation: 2, observed_generation: observedGeneration, ready_at: readyAt }],
        )
        expect(rows[0].status).toBe(publicStatus({ desiredState, generation: 2, observedGeneration, readyAt }))
      }
})
