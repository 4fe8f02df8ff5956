import { afterAll, expect, onTestFinished, test } from 'vitest'
import { settledId } from '#history/settled.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { startFakeGateway } from '../../support/fake-gateway.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const gateway = await startFakeGateway({})
const driver = new FakeDriver(() => gateway.endpoint)
const chowder = await openTestChowder({ sandboxes: driver })
const { key } = await chowder.signUp()
const url = await chowder.app.listen({ port: 0, host: '127.0.0.1' })
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})

const as = (method: 'GET' | 'POST' | 'PATCH' | 'DELETE', path: string, body?: unknown, by = key) =>
  chowder.call(method, path, { key: by, ...(body !== undefined && { body }) })
const create = async (by = key): Promise<string> => (await as('POST', '/v1/instances', { name: 'a' }, by)).body.id

interface Message {
  id: number | null
  event: Record<string, unknown> & { id: number | null; type: string; instance_id: string | null }
}

function messageIn(text: string): Message {
  const lines = text.split('\n')
  const value = (name: string) => lines.find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2)
  return { id: Number(value('id')) || null, event: JSON.parse(value('data') ?? '') }
}

/** Follows a stream; resolves when its first bytes have come. */
async function follow(path = '/v1/events/stream', { by = key, headers = {} as Record<string, string> } = {}) {
  const abort = new AbortController()
  onTestFinished(() => abort.abort())
  const answer = await fetch(url + path, {
    headers: { authorization: `Bearer ${by}`, connection: 'close', ...headers },
    signal: abort.signal,
  })
  let text = ''
  const seen = {
    status: answer.status,
    type: answer.headers.get('content-type'),
    isOver: false,
    abort: () => abort.abort(),
    get messages() {
      const whole = text.slice(0, text.lastIndexOf('\n\n') + 2)
      return whole
        .split('\n\n')
        .filter((part) => part.includes('data: '))
        .map(messageIn)
    },
    get types() {
      return this.messages.map(({ event }) => event.type)
    },
  }
  const read = async () => {
    for await (const chunk of answer.body ?? []) text += Buffer.from(chunk)
  }
  read()
    .catch(() => {})
    .finally(() => {
      seen.isOver = true
    })
  await until('the first bytes', () => text !== '' || seen.isOver)
  return seen
}

test('sends the events of the history as they come, with the steps of a start between them', async () => {
  const stream = await follow()
  expect([stream.status, stream.type]).toEqual([200, 'text/event-stream'])
  const id = await create()
  driver.fail({ method: 'start', hangMs: 700 }) // one attempt that is slow, and fails
  const worker = await chowder.startWorker()
  await until('the start', () => stream.types.includes('instance.running'), 20_000)
  await worker.stop()
  const steps = stream.messages.filter(({ event }) => event.type === 'instance.step')
  expect(steps.length).toBeGreaterThan(0)
  for (const { id: messageId, event } of steps) {
    expect([messageId, event.id, event.instance_id]).toEqual([null, null, id])
    expect(event.step).toEqual(expect.any(String))
  }
  const { body: listed } = await as('GET', `/v1/instances/${id}/events?after=0`)
  const sent = stream.messages.filter(({ event }) => event.type !== 'instance.step')
  const times = steps.map(({ event }) => String(event.created_at))
  expect(times).toEqual(times.toSorted())
  expect(String(times[0]) > String(listed[0].created_at)).toBe(true)
  expect(sent.map(({ event }) => event)).toEqual(listed)
  expect(sent.map(({ id: messageId }) => messageId)).toEqual(listed.map((event: { id: number }) => event.id))
})

test('goes on after `Last-Event-ID`, which comes before `after`, through any number of pages', async () => {
  const id = await create()
  for (let count = 0; count < 250; count += 1) await as('PATCH', `/v1/instances/${id}`, { name: `n${count}` })
  const path = `/v1/instances/${id}/events/stream`
  const whole = await follow(`${path}?after=0`)
  await until('all of it', () => whole.messages.length === 251)
  const ids = whole.messages.map((message) => message.id)
  expect(ids).toEqual(ids.toSorted((a, b) => Number(a) - Number(b)))
  const rest = await follow(`${path}?after=0`, { headers: { 'last-event-id': String(ids[240]) } })
  await until('the rest', () => rest.messages.length === 10)
  await as('PATCH', `/v1/instances/${id}`, { name: 'last' })
  await until('the next one', () => rest.messages.length === 11 && whole.messages.length === 252)
  expect(new Set(whole.messages.map((message) => message.id)).size).toBe(252)
})

test('gives a reader that is far behind each event once, in order', async () => {
  const { organizationId } = (
    await chowder.database.pool.query('SELECT organization_id AS "organizationId" FROM instances LIMIT 1')
  ).rows[0]
  const stream = await follow('/v1/events/stream?type=file.write')
  await chowder.database.pool.query(
    `INSERT INTO events (organization_id, type, actor_type) SELECT $1, 'file.write', 'operator' FROM generate_series(1, 5000)`,
    [organizationId],
  )
  await until('all of them', () => stream.messages.length >= 5000, 20_000)
  const ids = stream.messages.map((message) => Number(message.id))
  expect(ids).toHaveLength(5000)
  expect(ids).toEqual(ids.toSorted((a, b) => a - b))
  expect(ids.at(-1)).toBe(await settledId(chowder.database.db))
})

test('sends only the types that were asked for', async () => {
  const id = await create()
  const stream = await follow(`/v1/instances/${id}/events/stream?type=instance.delete`)
  await as('PATCH', `/v1/instances/${id}`, { name: 'b' })
  await as('DELETE', `/v1/instances/${id}`)
  await until('the event', () => stream.types.length > 0)
  expect(stream.types).toEqual(['instance.delete'])
  const refused = await as('GET', '/v1/events/stream?type=instance.created')
  expect([refused.status, refused.body.error.param]).toEqual([422, 'type.0'])
})

test('shows a scoped key its own instances alone, and another organization nothing', async () => {
  const [own, other] = [await create(), await create()]
  const grant = { name: 'k', instance_ids: [own], permissions: ['read'] }
  const scoped = (await as('POST', '/v1/keys', grant)).body
  const stranger = await chowder.signUp()
  const streams = await Promise.all([
    follow('/v1/events/stream', { by: scoped.raw_key }),
    follow('/v1/events/stream', { by: stranger.key }),
    follow(),
  ])
  for (const id of [other, own]) await as('PATCH', `/v1/instances/${id}`, { name: 'c' })
  const [seen, foreign, whole] = streams
  await until('both events', () => whole?.types.length === 2 && seen?.types.length === 1)
  expect(seen?.messages.map(({ event }) => event.instance_id)).toEqual([own])
  expect(foreign?.messages).toEqual([])
  const denied = await as('GET', `/v1/instances/${other}/events/stream`, undefined, scoped.raw_key)
  expect(denied.status).toBe(403)
  expect((await as('GET', `/v1/instances/${own}/events/stream`, undefined, stranger.key)).status).toBe(404)
  const blind = (await as('POST', '/v1/keys', { ...grant, permissions: ['files'] })).body
  expect((await as('GET', '/v1/events/stream', undefined, blind.raw_key)).status).toBe(403)
})

test('is cut within a second when its key is revoked, or its grants change', async () => {
  const id = await create()
  const grant = { name: 'k', instance_ids: [id], permissions: ['read'] }
  const revoked = (await as('POST', '/v1/keys', grant)).body
  const narrowed = (await as('POST', '/v1/keys', grant)).body
  const streams = await Promise.all([revoked, narrowed].map(({ raw_key: by }) => follow('/v1/events/stream', { by })))
  const untouched = await follow()
  await as('DELETE', `/v1/keys/${revoked.id}`)
  await as('PATCH', `/v1/keys/${narrowed.id}`, { name: 'other' })
  await until('both cuts', () => streams.every(({ isOver }) => isOver), 1000)
  expect(untouched.isOver).toBe(false)
})

test('goes on over an outage of the database, and misses nothing', async () => {
  const id = await create()
  const stream = await follow(`/v1/instances/${id}/events/stream`)
  await chowder.database.pool.query(
    'SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()',
  )
  await until('the change', async () => (await as('PATCH', `/v1/instances/${id}`, { name: 'after' })).status === 200)
  await until('its event', () => stream.types.includes('instance.update'))
})
