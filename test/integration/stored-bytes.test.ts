import { once } from 'node:events'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { WebSocket } from 'ws'
import { addUpStoredBytes } from '#database/stored-bytes.ts'
import { deleteSurplusEvents } from '#history/retention.ts'
import { eraseTerminated } from '#instances/erase.ts'
import { FakeDriver } from '../support/fake-driver.ts'
import { answerJson, responseObject, type StubGateway, startStubGateway } from '../support/stub-responses-gateway.ts'
import { openTestChowder, type TestChowder } from '../support/test-chowder.ts'
import { until } from '../support/until.ts'

const limit = 150_000
/** Sealed, it takes more than the limit. */
const long = 'x'.repeat(limit)

let gateway: StubGateway
let chowder: TestChowder
let url: string
let organization: { id: string; key: string }

beforeAll(async () => {
  gateway = await startStubGateway(answerJson(200, responseObject()))
  chowder = await openTestChowder({
    sandboxes: new FakeDriver(),
    storageLimits: { bytes: limit, eventBytes: 1_000_000 },
  })
  url = await chowder.app.listen({ port: 0, host: '127.0.0.1' })
})
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})
beforeEach(async () => {
  organization = await chowder.signUp()
})

const query = (text: string, values: unknown[] = []) => chowder.database.pool.query(text, values)
const call = (method: 'GET' | 'POST' | 'PATCH' | 'DELETE', path: string, body?: unknown, idempotencyKey?: string) =>
  chowder.call(method, path, {
    key: organization.key,
    ...(body !== undefined && { body }),
    ...(idempotencyKey !== undefined && { headers: { 'idempotency-key': idempotencyKey } }),
  })

async function newInstance(body: object = {}): Promise<string> {
  const created = await call('POST', '/v1/instances', { name: 'agent', ...body })
  expect(created.status).toBe(201)
  await query('UPDATE instances SET observed_generation = generation, ready_at = now(), endpoint = $2 WHERE id = $1', [
    created.body.id,
    gateway.endpoint,
  ])
  return created.body.id
}

const say = (id: string, body: object = {}) =>
  call('POST', `/v1/instances/${id}/responses`, { model: 'openclaw', input: 'hello', ...body })

/** Adds up, and returns what an operator's query and the API say. */
async function storage() {
  await addUpStoredBytes(chowder.database.db)
  return (await call('GET', '/v1/subscription')).body.storage
}

/** The bytes of the tables themselves. */
async function recounted() {
  const { rows } = await query(
    `SELECT
       (SELECT coalesce(sum(stored_bytes(r.*)), 0)::int FROM responses r WHERE organization_id = $1) AS responses,
       (SELECT coalesce(sum(stored_bytes(i.*)), 0)::int FROM instances i WHERE organization_id = $1) AS instances,
       (SELECT coalesce(sum(stored_bytes(k.*)), 0)::int FROM idempotency_keys k WHERE organization_id = $1) AS answers,
       (SELECT coalesce(sum(stored_bytes(e.*)), 0)::int FROM events e WHERE organization_id = $1) AS events`,
    [organization.id],
  )
  const { responses, instances, answers, events } = rows[0]
  return { responses_bytes: responses, instances_bytes: instances, idempotency_bytes: answers, events_bytes: events }
}

/** Has the organization store more than its limit, in one response of this instance. */
async function fill(id: string): Promise<string> {
  const filled = await say(id, { input: long })
  expect(filled.status).toBe(200)
  await until('the stored response', async () => (await storage()).used_bytes > limit)
  return filled.body.id
}

/** Waits until the API has noticed that the organization is at its limit. */
const refused = () =>
  until('a refusal', async () => (await call('POST', '/v1/instances', { name: 'more' })).status === 402)

describe('S10: the bytes that an organization stores', () => {
  test('are counted as the tables have them, through writes, changes, deletes and erasure', async () => {
    const id = await newInstance({ instructions: 'Be brief.', metadata: { team: 'support' } })
    await call('PATCH', `/v1/instances/${id}`, { metadata: { team: null, owner: 'x'.repeat(100) } })
    await call('POST', '/v1/organization/keys', { name: 'k' }, 'once')
    await say(id, { input: 'x'.repeat(1000) })
    const { body } = await say(id)
    // The end of a response may be written after its answer.
    const written = `SELECT FROM responses WHERE organization_id = $1 AND status = 'completed'`
    await until('both responses', async () => (await query(written, [organization.id])).rowCount === 2)
    expect(await storage()).toMatchObject(await recounted())
    expect((await storage()).instances_bytes).toBeGreaterThan(100)
    expect((await storage()).idempotency_bytes).toBeGreaterThan(100)

    await call('DELETE', `/v1/instances/${id}/responses/${body.id}`)
    await query("UPDATE idempotency_keys SET sealed_answer = NULL WHERE organization_id = $1 AND key = 'once'", [
      organization.id,
    ])
    expect(await storage()).toMatchObject(await recounted())

    await call('DELETE', `/v1/instances/${id}`)
    await query(
      `UPDATE instances SET observed_generation = generation, terminated_at = now() - interval '31 days' WHERE id = $1`,
      [id],
    )
    await eraseTerminated(chowder.database.db)
    await query('DELETE FROM responses WHERE instance_id = $1', [id])
    await query('DELETE FROM idempotency_keys WHERE organization_id = $1', [organization.id])
    expect(await storage()).toMatchObject({ ...(await recounted()), used_bytes: 0, limit_bytes: limit })
  })

  test('at the limit, what stores more is a 402 that says what to delete; reads, stops and deletes work', async () => {
    const id = await newInstance()
    const starting = (await call('POST', '/v1/instances', { name: 'x', instructions: 'Be brief.' })).body.id
    const response = await fill(id)
    await refused()
    for (const answer of [
      await call('POST', '/v1/instances', { name: 'more' }),
      await call('POST', '/v1/instances', { name: 'more' }, 'new-1'),
      await call('POST', '/v1/organization/keys', { name: 'k' }, 'new-2'),
      await call('PATCH', `/v1/instances/${starting}`, { instructions: 'Be verbose.' }),
      await say(id),
    ]) {
      expect(answer).toMatchObject({ status: 402, body: { error: { code: 'storage_limit_reached' } } })
      expect(answer.body.detail).toMatch(/146\.5 KiB.* of responses.*Delete responses/)
    }
    for (const [works, status] of [
      [await say(id, { store: false }), 200],
      [await call('GET', `/v1/instances/${id}/responses/${response}`), 200],
      [await call('GET', `/v1/instances/${id}`), 200],
      [await call('PATCH', `/v1/instances/${starting}`, { instructions: null, name: 'new' }), 200],
      [await call('POST', '/v1/organization/keys', { name: 'k' }), 201],
    ] as const) {
      expect(works.status).toBe(status)
    }
    // Nothing is kept for the keys of refused requests.
    const { rowCount } = await query('SELECT FROM idempotency_keys WHERE organization_id = $1', [organization.id])
    expect(rowCount).toBe(0)

    expect((await call('DELETE', `/v1/instances/${id}/responses/${response}`)).status).toBe(200)
    expect((await storage()).used_bytes).toBeLessThan(limit)
    await until('room', async () => (await call('POST', '/v1/instances', { name: 'more' })).status === 201)
  })

  test('at the limit, a stop with an Idempotency-Key works, keeps no answer, and earlier answers are repeated', async () => {
    const id = await newInstance()
    const first = await call('POST', '/v1/organization/keys', { name: 'k' }, 'earlier')
    await fill(id)
    await refused()
    const again = await call('POST', '/v1/organization/keys', { name: 'k' }, 'earlier')
    expect(again).toMatchObject({ status: 201, body: first.body, headers: { 'idempotent-replayed': 'true' } })

    const stopping = call('POST', `/v1/instances/${id}/stop`, undefined, 'stop')
    await until('the stop', async () => {
      const stopped = 'UPDATE instances SET observed_generation = generation WHERE id = $1 AND desired_state = $2'
      return ((await query(stopped, [id, 'stopped'])).rowCount ?? 0) > 0
    })
    expect((await stopping).status).toBe(200)
    const { rows } = await query('SELECT key FROM idempotency_keys WHERE organization_id = $1', [organization.id])
    expect(rows).toEqual([{ key: 'earlier' }])
    expect((await call('DELETE', `/v1/instances/${id}`)).status).toBe(204)
  })

  test('at the limit, a turn on a WebSocket is refused, and the connection stays open', async () => {
    const id = await newInstance()
    await fill(id)
    await refused()
    const socket = new WebSocket(`${url.replace('http', 'ws')}/v1/instances/${id}/responses`, {
      headers: { authorization: `Bearer ${organization.key}` },
    })
    await once(socket, 'open')
    const send = async (fields: object) => {
      socket.send(JSON.stringify({ type: 'response.create', model: 'openclaw', input: 'hello', ...fields }))
      return JSON.parse(String((await once(socket, 'message'))[0]))
    }
    expect(await send({})).toMatchObject({ type: 'error', error: { code: 'storage_limit_reached' } })
    expect(await send({ store: false })).toMatchObject({ type: 'response.created' })
    socket.terminate()
  })

  test('the channels and skills of an instance count with it', async () => {
    const id = await newInstance()
    const before = (await storage()).instances_bytes
    await query("INSERT INTO channels (instance_id, channel, enabled, sealed_config) VALUES ($1, 'x', true, 'four')", [
      id,
    ])
    await query("INSERT INTO skills (instance_id, name, sealed_settings) VALUES ($1, 'x', 'sixsix')", [id])
    expect((await storage()).instances_bytes).toBe(before + 10)
    await query('DELETE FROM channels WHERE instance_id = $1', [id])
    await query('UPDATE skills SET sealed_settings = NULL WHERE instance_id = $1', [id])
    expect((await storage()).instances_bytes).toBe(before)
  })

  test('two processes that add up at once count each change once', async () => {
    await query(
      `INSERT INTO events (organization_id, type, actor_type) SELECT $1, 'key.create', 'key' FROM generate_series(1, 50000)`,
      [organization.id],
    )
    await Promise.all(Array.from({ length: 4 }, () => addUpStoredBytes(chowder.database.db)))
    expect((await storage()).events_bytes).toBe((await recounted()).events_bytes)
    await query('DELETE FROM events WHERE organization_id = $1', [organization.id])
  })
})

test('R8: beyond its bytes of events an organization loses its oldest ones, and no other does', async () => {
  const other = await chowder.signUp()
  const write = (id: string) =>
    query(
      `INSERT INTO events (organization_id, type, actor_type, reason)
       SELECT $1, 'file.write', 'key', n FROM generate_series(1, 5000) n`,
      [id],
    )
  await write(organization.id)
  await write(other.id)
  await addUpStoredBytes(chowder.database.db)
  const { rows } = await query(
    'SELECT sum(stored_bytes(events))::int AS bytes FROM events WHERE organization_id = $1',
    [other.id],
  )
  const half = Math.floor(rows[0].bytes / 2)
  await query('UPDATE stored_bytes SET bytes = 0 WHERE organization_id = $1', [other.id])
  await deleteSurplusEvents(chowder.database.db, half)
  const left = await query(
    'SELECT count(*)::int AS count, max(reason::int) AS latest FROM events WHERE organization_id = $1 AND reason IS NOT NULL',
    [organization.id],
  )
  expect(left.rows[0].latest).toBe(5000)
  expect(left.rows[0].count).toBeGreaterThan(1000)
  expect(left.rows[0].count).toBeLessThanOrEqual(2500)
  const others = await query('SELECT FROM events WHERE organization_id = $1 AND reason IS NOT NULL', [other.id])
  expect(others.rowCount).toBe(5000)
  await query('UPDATE stored_bytes SET bytes = 0 WHERE organization_id = $1', [other.id])
})
