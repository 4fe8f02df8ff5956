import { afterAll, beforeEach, expect, test } from 'vitest'
import { eraseTerminated } from '#instances/erase.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { openTestChowder, type TestChowder } from '../../support/test-chowder.ts'

/** Another process on the same database. */
let key: string
let organizationId: string

const chowder = await openTestChowder({ sandboxes: new FakeDriver() })
const replica = await openTestChowder({ sandboxes: new FakeDriver(), database: chowder.database })
beforeEach(async () => {
  const organization = await chowder.signUp()
  key = organization.key
  organizationId = organization.id
})
afterAll(async () => {
  await replica.close()
  await chowder.close()
})

interface Sent {
  as?: string
  headers?: Record<string, string>
  on?: TestChowder
}
const call = (method: 'GET' | 'POST' | 'PATCH' | 'DELETE', path: string, body?: object, sent: Sent = {}) =>
  (sent.on ?? chowder).call(method, `/v1/instances${path}`, {
    key: sent.as ?? key,
    ...(body && { body }),
    ...(sent.headers && { headers: sent.headers }),
  })
const create = (fields: object = {}, sent: Sent = {}) =>
  call('POST', '', { name: 'agent', external_id: 'cust-42', ...fields }, sent)
const listed = async () => (await call('GET', '')).body
const counted = async () => (await chowder.call('GET', '/v1/organization', { key })).body.instance_count

test('is kept as it was sent, and finds the instance of its organization', async () => {
  const { status, body } = await create()
  expect([status, body.external_id]).toEqual([201, 'cust-42'])
  await create({ external_id: 'cust-43' })
  await create({}, { as: (await chowder.signUp()).key })
  expect((await call('GET', '?external_id=cust-42')).body).toMatchObject([{ id: body.id, external_id: 'cust-42' }])
  expect((await call('GET', '?external_id=cust-4')).body).toEqual([])
  expect((await call('GET', `/${body.id}`)).body.external_id).toBe('cust-42')
})

test.each([
  ['a space', 'a b'],
  ['an umlaut', 'ü'],
  ['none', ''],
  ['129 characters', 'x'.repeat(129)],
  ['a number', 42],
])('%s is a 422, at create and at PATCH', async (_what, external_id) => {
  const { body: instance } = await create()
  for (const answer of [await create({ external_id }), await call('PATCH', `/${instance.id}`, { external_id })]) {
    expect([answer.status, answer.body.detail[0].loc]).toEqual([422, ['body', 'external_id']])
  }
})

test('a create with a known one is a 409 that names the instance, and creates nothing', async () => {
  const { body: first } = await create()
  const { status, body } = await create({ name: 'other' })
  expect([status, body.detail]).toEqual([409, expect.stringContaining(first.id)])
  expect(body.detail).toContain('"if_exists": "return"')
  expect([await listed(), await counted()]).toMatchObject([[{ id: first.id, name: 'agent' }], 1])
})

test('with if_exists: return it answers 200 with the instance as it is, whatever else is sent', async () => {
  const { body: first } = await create({ metadata: { a: '1' } })
  const again = await create({ name: 'other', metadata: { a: '2' }, if_exists: 'return' })
  expect([again.status, again.body]).toEqual([200, first])
  expect(await listed()).toEqual([first])
  const { body: events } = await call('GET', `/${first.id}/events`)
  expect(events.map(({ type }: { type: string }) => type)).toEqual(['instance.create'])
  expect((await create({ external_id: 'new', if_exists: 'return' })).status).toBe(201)
})

test('a known one is found also by an organization that may not create another', async () => {
  const { body: first } = await create()
  await chowder.database.pool.query('UPDATE organizations SET instance_limit = 1 WHERE id = $1', [organizationId])
  expect((await create({ if_exists: 'return' })).body.id).toBe(first.id)
  expect((await create()).status).toBe(409)
  expect((await create({ external_id: 'new', if_exists: 'return' })).status).toBe(402)
})

test('if_exists without an external_id is a 400 that says so', async () => {
  const { status, body } = await create({ external_id: null, if_exists: 'return' })
  expect([status, body.detail]).toEqual([400, expect.stringContaining('external_id')])
  expect(await listed()).toEqual([])
})

test.each([
  ['', false],
  [', each with an Idempotency-Key of its own', true],
])(
  'of 40 creates at once over two processes%s, one creates and takes a place under the limit',
  async (_with, isKeyed) => {
    const answers = await Promise.all(
      Array.from({ length: 40 }, (_, i) => {
        const headers: Record<string, string> = isKeyed ? { 'idempotency-key': `k${i}` } : {}
        return create(i % 2 ? { if_exists: 'return' } : {}, { headers, on: i % 4 < 2 ? chowder : replica })
      }),
    )
    const [first, ...more] = await listed()
    expect([more, await counted()]).toEqual([[], 1])
    const statuses = answers.map(({ status }) => status)
    expect(statuses.filter((status) => status === 201)).toHaveLength(1)
    for (const { status, body } of answers) {
      if (status === 409) expect(body.detail).toContain(first.id)
      else expect(body.id).toBe(first.id)
    }
    expect(statuses.filter((status) => status === 409).length).toBeGreaterThanOrEqual(19)
  },
)

test('an Idempotency-Key replays the answer with its status', async () => {
  const { body: first } = await create()
  const repeat = () => create({ if_exists: 'return' }, { headers: { 'idempotency-key': 'found' } })
  expect([(await repeat()).status, (await call('PATCH', `/${first.id}`, { name: 'other' })).status]).toEqual([200, 200])
  const { status, body, headers } = await repeat()
  expect([status, body, headers['idempotent-replayed']]).toEqual([200, first, 'true'])
})

test('a delete frees it at once; the deleted instance keeps it until its row is erased', async () => {
  const { body: first } = await create()
  await call('DELETE', `/${first.id}`)
  const { status, body: second } = await create()
  expect(status).toBe(201)
  expect((await call('GET', '?external_id=cust-42')).body).toMatchObject([{ id: second.id }])
  expect((await call('GET', '?external_id=cust-42&status=terminated')).body).toMatchObject([{ id: first.id }])
  const { db, pool } = chowder.database
  await pool.query(
    `UPDATE instances SET terminated_at = now() - interval '31 days', observed_generation = generation WHERE id = $1`,
    [first.id],
  )
  await eraseTerminated(db)
  const { rows } = await pool.query('SELECT external_id FROM instances WHERE id = $1', [first.id])
  expect(rows).toEqual([{ external_id: null }])
})

test('a PATCH sets and removes it; one that another instance has is a 409 that names that one', async () => {
  const { body: first } = await create()
  const { body: second } = await create({ external_id: null })
  const taken = await call('PATCH', `/${second.id}`, { name: 'other', external_id: 'cust-42' })
  expect([taken.status, taken.body.detail]).toEqual([409, expect.stringContaining(first.id)])
  expect((await call('GET', `/${second.id}`)).body).toMatchObject({ name: 'agent', external_id: null })
  expect((await call('PATCH', `/${first.id}`, { external_id: 'cust-42' })).status).toBe(200)
  expect((await call('PATCH', `/${first.id}`, { external_id: null })).body.external_id).toBeNull()
  const config = { 'agent.system_prompt': 'hi' }
  const moved = await call('PATCH', `/${second.id}`, { external_id: 'cust-42', openclaw_config: config })
  expect([moved.status, moved.body.external_id]).toEqual([200, 'cust-42'])
})

test('of PATCHes at once that want the same one, one gets it', async () => {
  const ids: string[] = []
  for (let i = 0; i < 6; i += 1) ids.push((await create({ external_id: null })).body.id)
  const answers = await Promise.all(ids.map((id) => call('PATCH', `/${id}`, { external_id: 'cust-42' })))
  expect(answers.map(({ status }) => status).sort()).toEqual([200, 409, 409, 409, 409, 409])
})

test('a scoped key reads it and cannot change it', async () => {
  const { body: instance } = await create()
  const grant = { name: 'k', instance_ids: [instance.id], permissions: ['read', 'configure'] }
  const { raw_key } = (await chowder.call('POST', '/v1/keys', { key, body: grant })).body
  expect((await call('GET', `/${instance.id}`, undefined, { as: raw_key })).body.external_id).toBe('cust-42')
  const refused = await call('PATCH', `/${instance.id}`, { external_id: 'mine' }, { as: raw_key })
  expect([refused.status, refused.body.detail]).toEqual([403, expect.stringContaining('organization key')])
})
