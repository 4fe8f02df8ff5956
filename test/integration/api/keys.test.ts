import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from 'vitest'
import { deleteRevokedKeys } from '#api/keys/retention.ts'
import { permissions } from '#database/schema.ts'
import { newApiKey } from '#http/api-key.ts'
import { errorBody } from '../../support/error-body.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { present } from '../../support/present.ts'
import { expectWholeStream, readEvents } from '../../support/response-schemas.ts'
import { watchStalls } from '../../support/stalls.ts'
import { delta, startStream, startStubGateway, streamHead } from '../../support/stub-responses-gateway.ts'
import { openTestChowder, type TestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

/** Stands for a second process of the installation that has its own cache of keys. */

const sandboxes = new FakeDriver()
const chowder = await openTestChowder({ sandboxes })
const replica = await openTestChowder({ sandboxes, database: chowder.database })
const url = await chowder.app.listen({ port: 0, host: '127.0.0.1' })
afterAll(async () => {
  await replica.close()
  await chowder.close()
})

const missing = '0199f7a2-5b1e-7c3d-9a4f-2e6b8d0c1f35'
const timestamp = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/
const inAnHour = () => new Date(Date.now() + 3_600_000).toISOString()

async function createInstance(key: string): Promise<string> {
  const { body } = await chowder.call('POST', '/v1/instances', { key, body: { name: 'agent' } })
  return body.id
}

/** An organization with an instance. */
async function newTenant() {
  const { id, key } = await chowder.signUp()
  return { id, key, instanceId: await createInstance(key) }
}

type Tenant = Awaited<ReturnType<typeof newTenant>>

const create = ({ key, instanceId }: Tenant, over: Record<string, unknown> = {}) =>
  chowder.call('POST', '/v1/keys', {
    key,
    body: { name: 'frontend-chat', instance_ids: [instanceId], permissions: ['read', 'interact'], ...over },
  })

/** A working scoped key and its id. */
async function scopedKey(tenant: Tenant, over: Record<string, unknown> = {}): Promise<{ id: string; key: string }> {
  const { body } = await create(tenant, over)
  return { id: body.id, key: body.raw_key }
}

const statusOf = async (key: string, { instanceId }: Tenant, through = chowder) =>
  (await through.call('GET', `/v1/instances/${instanceId}/status`, { key })).status

describe('POST /v1/keys', () => {
  test('answers 201 with the documented key, which is shown once', async () => {
    const tenant = await newTenant()
    const { status, body } = await create(tenant)
    expect(status).toBe(201)
    expect(body).toEqual({
      id: expect.stringMatching(/^[0-9a-f-]{36}$/),
      organization_id: tenant.id,
      name: 'frontend-chat',
      key_prefix: `${body.raw_key.slice(0, 11)}....`,
      is_active: true,
      expires_at: null,
      last_used_at: null,
      created_at: expect.stringMatching(timestamp),
      raw_key: expect.stringMatching(/^chd_sk_[0-9a-f]{72}$/),
    })
    const { rows } = await chowder.database.pool.query('SELECT * FROM api_keys')
    expect(JSON.stringify(rows)).not.toContain(body.raw_key)
    expect(chowder.logged.join('')).not.toContain(body.raw_key)
  })

  test.each([
    ['no name', { name: undefined }, 'name'],
    ['an empty name', { name: '' }, 'name'],
    ['no instances', { instance_ids: [] }, 'instance_ids'],
    ['101 instances', { instance_ids: Array.from({ length: 101 }, (_, at) => `${at}`) }, 'instance_ids'],
    ['an instance twice', { instance_ids: [missing, missing] }, 'instance_ids'],
    ['no permissions', { permissions: [] }, 'permissions'],
    ['an unknown permission', { permissions: ['admin'] }, 'permissions'],
    ['a permission twice', { permissions: ['read', 'read'] }, 'permissions'],
    ['an expiry that is a number', { expires_at: 1_800_000_000 }, 'expires_at'],
    ['an unknown field', { organization_id: missing }, 'organization_id'],
  ])('%s is a 422 that says where', async (_what, over, field) => {
    const { status, body } = await create(await newTenant(), over)
    expect([status, body.detail[0].loc.slice(0, 2)]).toEqual([422, ['body', field]])
  })

  test.each([
    ['in the past', '2020-01-01T00:00:00Z', /in the future/],
    ['without a zone', '2099-01-01T00:00:00', /ISO 8601/],
    ['on a day that is none', '2099-02-30T00:00:00Z', /ISO 8601/],
    ['no time', 'never', /ISO 8601/],
    ['in a year that the database does not know', '0000-01-01T00:00:00Z', /ISO 8601/],
    ['after the last year, in UTC', '9999-12-31T23:59:59-01:00', /ISO 8601/],
  ])('an expiry %s is a 400', async (_what, expires_at, detail) => {
    const answer = await create(await newTenant(), { expires_at })
    expect([answer.status, answer.body.detail]).toEqual([400, expect.stringMatching(detail)])
  })

  test('an expiry is accepted in both documented forms, up to the last possible second', async () => {
    const tenant = await newTenant()
    for (const expires_at of ['2099-12-31T23:59:59Z', '2099-12-31T23:59:59.000000+00:00']) {
      expect((await create(tenant, { expires_at })).body.expires_at).toBe('2099-12-31T23:59:59Z')
    }
    const last = '9999-12-31T23:59:59Z'
    expect((await create(tenant, { expires_at: last })).body.expires_at).toBe(last)
  })

  test('instances that are unknown, malformed, terminated or another organization’s are a 400 that names them', async () => {
    const [tenant, other] = [await newTenant(), await newTenant()]
    const gone = await createInstance(tenant.key)
    await chowder.call('DELETE', `/v1/instances/${gone}`, { key: tenant.key })
    const bad = [missing, 'nonsense', gone, other.instanceId]
    const { status, body } = await create(tenant, { instance_ids: [tenant.instanceId, ...bad] })
    expect([status, body.detail]).toEqual([400, expect.stringContaining(bad.join(', '))])
    expect(body.detail).not.toContain(tenant.instanceId)
    expect((await chowder.call('GET', '/v1/keys', { key: tenant.key })).body).toEqual([])
  })

  test('an id in upper case is the same instance, and the key works on it', async () => {
    const tenant = await newTenant()
    const { instanceId } = tenant
    const { key } = await scopedKey(tenant, { instance_ids: [instanceId.toUpperCase(), instanceId] })
    expect(await statusOf(key, tenant)).toBe(200)
  })

  test('A14: an organization has at most 1,000 active keys, also when they are made at once', async () => {
    const tenant = await newTenant()
    const { id: expired } = await scopedKey(tenant)
    await chowder.database.pool.query(`UPDATE api_keys SET expires_at = now() - interval '1 minute' WHERE id = $1`, [
      expired,
    ])
    await chowder.database.pool.query(
      `INSERT INTO api_keys (id, organization_id, key_hash, key_prefix, name)
       SELECT gen_random_uuid(), $1, sha256(gen_random_uuid()::text::bytea), 'chd_org_', 'x' FROM generate_series(1, 997)`,
      [tenant.id],
    )
    const answers = await Promise.all(Array.from({ length: 5 }, () => create(tenant)))
    expect(answers.map(({ status }) => status).sort()).toEqual([201, 201, 409, 409, 409])
    expect(answers.find(({ status }) => status === 409)?.body.error.code).toBe('too_many_keys')
    const revive = { key: tenant.key, body: { expires_at: inAnHour() } }
    expect((await chowder.call('PATCH', `/v1/keys/${expired}`, revive)).body.error.code).toBe('too_many_keys')
    const spare = answers.find(({ status }) => status === 201)?.body.id
    await chowder.call('DELETE', `/v1/keys/${spare}`, { key: tenant.key })
    expect((await chowder.call('PATCH', `/v1/keys/${expired}`, revive)).status).toBe(200)
  })
})

test('R8: revoked keys are deleted after a year, and no others', async () => {
  const tenant = await newTenant()
  const ids: Record<string, string> = {}
  for (const name of ['old', 'recent', 'active']) ids[name] = (await create(tenant, { name })).body.id
  for (const name of ['old', 'recent']) await chowder.call('DELETE', `/v1/keys/${ids[name]}`, { key: tenant.key })
  const revokedAgo = (days: number, id: string | undefined) =>
    chowder.database.pool.query('UPDATE api_keys SET revoked_at = now() - make_interval(days => $1) WHERE id = $2', [
      days,
      id,
    ])
  await revokedAgo(366, ids.old)
  await revokedAgo(364, ids.recent)
  await chowder.database.pool.query(`UPDATE api_keys SET expires_at = now() - interval '2 years' WHERE id = $1`, [
    ids.active,
  ])
  await deleteRevokedKeys(chowder.database.db)
  const { body } = await chowder.call('GET', '/v1/keys', { key: tenant.key })
  expect(body.map(({ name }: { name: string }) => name)).toEqual(['active', 'recent'])
})

describe('GET /v1/keys', () => {
  test('lists only scoped keys, newest first, in pages, with revoked and expired ones as inactive', async () => {
    const tenant = await newTenant()
    const ids: string[] = []
    for (const name of ['one', 'two', 'three']) ids.unshift((await create(tenant, { name })).body.id)
    await create(await newTenant())
    const [three, two] = ids
    await chowder.call('DELETE', `/v1/keys/${three}`, { key: tenant.key })
    await chowder.database.pool.query("UPDATE api_keys SET expires_at = now() - interval '1 s' WHERE id = $1", [two])

    const { body } = await chowder.call('GET', '/v1/keys', { key: tenant.key })
    expect(body.map(({ id }: { id: string }) => id)).toEqual(ids)
    expect(body.map(({ is_active }: { is_active: boolean }) => is_active)).toEqual([false, false, true])
    expect(Object.keys(body[0]).sort()).toEqual(
      ['created_at', 'expires_at', 'id', 'is_active', 'key_prefix', 'last_used_at', 'name', 'organization_id'].sort(),
    )

    const paged: string[] = []
    let path: string | undefined = '/v1/keys?limit=2'
    while (path !== undefined) {
      const page: Awaited<ReturnType<TestChowder['call']>> = await chowder.call('GET', path, { key: tenant.key })
      paged.push(...page.body.map(({ id }: { id: string }) => id))
      path = /<http:\/\/chowder\.test(.+)>; rel="next"/.exec(String(page.headers.link))?.[1]
    }
    expect(paged).toEqual(ids)
    expect((await chowder.call('GET', '/v1/keys?cursor=nonsense', { key: tenant.key })).status).toBe(400)
  })

  test('the id of a key of another organization is not a position in the list', async () => {
    const tenant = await newTenant()
    await create(tenant)
    const foreign = (await create(await newTenant())).body.id
    const cursor = Buffer.from(foreign).toString('base64url')
    const { status, body } = await chowder.call('GET', `/v1/keys?cursor=${cursor}`, { key: tenant.key })
    expect([status, body]).toEqual([200, []])
  })
})

describe('GET /v1/keys/{key_id}', () => {
  test('adds the permissions for each instance, in the order of the request', async () => {
    const tenant = await newTenant()
    const [second, third] = [await createInstance(tenant.key), await createInstance(tenant.key)]
    const instance_ids = [third, tenant.instanceId, second]
    const { raw_key, ...created } = (await create(tenant, { instance_ids, permissions: ['channels', 'files'] })).body
    const { status, body } = await chowder.call('GET', `/v1/keys/${created.id}`, { key: tenant.key })
    const { instances, ...rest } = body
    expect([status, rest]).toEqual([200, { ...created, session_ids: null, session_prefix: null }])
    expect(instances).toEqual(instance_ids.map((instance_id) => ({ instance_id, permissions: ['channels', 'files'] })))
  })
})

describe('PATCH /v1/keys/{key_id}', () => {
  test('changes the name, sets an expiry and removes it, one at a time', async () => {
    const tenant = await newTenant()
    const { id } = await scopedKey(tenant)
    const patch = async (body: object) => {
      const answer = await chowder.call('PATCH', `/v1/keys/${id}`, { key: tenant.key, body })
      return [answer.status, answer.body.name, answer.body.expires_at]
    }
    expect(await patch({ expires_at: '2099-12-31T23:59:59Z' })).toEqual([200, 'frontend-chat', '2099-12-31T23:59:59Z'])
    expect(await patch({ name: 'old' })).toEqual([200, 'old', '2099-12-31T23:59:59Z'])
    expect(await patch({})).toEqual([200, 'old', '2099-12-31T23:59:59Z'])
    expect(await patch({ expires_at: null })).toEqual([200, 'old', null])
  })

  test.each([
    ['a past expiry', { expires_at: '2020-01-01T00:00:00Z' }, 400],
    ['an expiry that is no time', { expires_at: 'soon' }, 400],
    ['other permissions', { permissions: ['read'] }, 422],
    ['other instances', { instance_ids: [missing] }, 422],
    ['no name', { name: null }, 422],
  ])('%s is refused and changes nothing', async (_what, body, expected) => {
    const tenant = await newTenant()
    const { id } = await scopedKey(tenant)
    const read = async () => (await chowder.call('GET', `/v1/keys/${id}`, { key: tenant.key })).body
    const before = await read()
    const { status } = await chowder.call('PATCH', `/v1/keys/${id}`, { key: tenant.key, body })
    expect(status).toBe(expected)
    expect(await read()).toEqual(before)
  })

  test('on a revoked key is a 409; the expiry of an expired one can be extended', async () => {
    const tenant = await newTenant()
    const [revoked, expired] = [await scopedKey(tenant), await scopedKey(tenant)]
    await chowder.call('DELETE', `/v1/keys/${revoked.id}`, { key: tenant.key })
    await chowder.database.pool.query('UPDATE api_keys SET expires_at = now() WHERE id = $1', [expired.id])
    const extend = (id: string) =>
      chowder.call('PATCH', `/v1/keys/${id}`, { key: tenant.key, body: { expires_at: inAnHour() } })
    expect((await extend(revoked.id)).status).toBe(409)
    expect(await statusOf(expired.key, tenant)).toBe(401)
    expect((await extend(expired.id)).body.is_active).toBe(true)
    expect(await statusOf(expired.key, tenant)).toBe(200)
  })
})

test('a key that is missing, malformed, another organization’s or of the other kind is the same 404 everywhere', async () => {
  const [tenant, other] = [await newTenant(), await newTenant()]
  const { key } = tenant
  const ofOther = await scopedKey(other)
  const ofOrganization = (await chowder.call('GET', '/v1/organization/keys', { key })).body[0].id
  const ofScope = (await scopedKey(tenant)).id
  const answerOf = async (method: 'GET' | 'PATCH' | 'DELETE', path: string) => {
    const body = method === 'PATCH' ? { name: 'mine' } : undefined
    const answer = await chowder.call(method, path, { key, body })
    return [answer.status, answer.body]
  }
  const unknown = [404, errorBody('not_found', 'Key not found.')]
  for (const id of [missing, 'nonsense', ofOther.id, ofOrganization]) {
    for (const method of ['GET', 'PATCH', 'DELETE'] as const) {
      expect(await answerOf(method, `/v1/keys/${id}`)).toEqual(unknown)
    }
  }
  for (const id of [missing, 'nonsense', ofOther.id, ofScope]) {
    expect(await answerOf('DELETE', `/v1/organization/keys/${id}`)).toEqual(unknown)
  }
  expect(await statusOf(ofOther.key, other)).toBe(200)
})

test('S17: a guess without a right checksum costs no query', async () => {
  const { key } = await chowder.signUp()
  const statusWith = async (key: string) => (await chowder.call('GET', '/v1/organization', { key })).status
  const query = vi.spyOn(chowder.database.pool, 'query')
  const body = newApiKey('organization').slice(0, -8)
  for (const guess of [body, `${body}00000000`]) {
    expect([await statusWith(guess), query.mock.calls.length]).toEqual([401, 0])
  }
  query.mockRestore()
  expect(await statusWith(key)).toBe(200)
})

describe('a scoped key', () => {
  test.each([
    ['sk-ant-api03-abc', 'begin with chd_org_ or chd_sk_'],
    ['chd_org_f3a8…', 'Copy the whole key'],
    [`chd_sk_${'0'.repeat(72)}`, 'Copy the whole key'],
    [`chd_sk_${'0'.repeat(64)}`, 'Copy the whole key'],
    [newApiKey('scoped'), 'Unknown, revoked or expired API key.'],
  ])('is refused with what is wrong with %s', async (wrong, says) => {
    const { status, body } = await chowder.call('GET', '/v1/keys', { headers: { authorization: `Bearer ${wrong}` } })
    expect([status, body]).toEqual([
      401,
      errorBody('invalid_api_key', expect.stringContaining(says), { message: body.detail }),
    ])
  })

  const organizationOnly = [
    ['GET', '/v1/organization'],
    ['PATCH', '/v1/organization'],
    ['GET', '/v1/keys'],
    ['POST', '/v1/keys'],
    ['GET', `/v1/keys/${missing}`],
    ['PATCH', `/v1/keys/${missing}`],
    ['DELETE', `/v1/keys/${missing}`],
    ['GET', '/v1/organization/keys'],
    ['POST', '/v1/organization/keys'],
    ['DELETE', `/v1/organization/keys/${missing}`],
    ['GET', '/v1/subscription'],
    ['GET', '/v1/instances'],
    ['POST', '/v1/instances'],
    ['DELETE', '/v1/instances/own'],
    ['POST', '/v1/instances/own/start'],
    ['POST', '/v1/instances/own/stop'],
  ] as const

  test('A2: cannot create, read, change or revoke keys, use the organization, or create and delete instances, with all permissions', async () => {
    const tenant = await newTenant()
    const { key } = await scopedKey(tenant, { permissions })
    for (const [method, path] of organizationOnly) {
      const url = path.replace('own', tenant.instanceId)
      const answer = await chowder.call(method, url, { key, body: method === 'PATCH' ? {} : undefined })
      expect([url, answer.status, answer.body.detail]).toEqual([url, 403, expect.stringContaining('organization key')])
    }
  })

  test('A2: cannot extend its own permissions', async () => {
    const tenant = await newTenant()
    const { id, key } = await scopedKey(tenant)
    const body = { name: 'wider', instance_ids: [tenant.instanceId], permissions }
    expect((await chowder.call('POST', '/v1/keys', { key, body })).status).toBe(403)
    expect((await chowder.call('PATCH', `/v1/keys/${id}`, { key, body: { expires_at: null } })).status).toBe(403)
    expect((await chowder.call('GET', '/v1/keys', { key: tenant.key })).body).toHaveLength(1)
  })

  test('has its permissions on its instances', async () => {
    const tenant = await newTenant()
    const { key } = await scopedKey(tenant, { permissions: ['read', 'configure'] })
    const url = `/v1/instances/${tenant.instanceId}`
    expect((await chowder.call('GET', url, { key })).status).toBe(200)
    expect((await chowder.call('PATCH', url, { key, body: { name: 'renamed' } })).body.name).toBe('renamed')
  })

  test('is refused without a permission, which the answer names before the body is read', async () => {
    const tenant = await newTenant()
    const { key } = await scopedKey(tenant, { permissions: ['interact'] })
    const read = await chowder.call('GET', `/v1/instances/${tenant.instanceId}`, { key })
    expect([read.status, read.body.detail]).toEqual([403, expect.stringContaining('lacks the permission "read"')])
    const written = await chowder.call('PATCH', `/v1/instances/${tenant.instanceId}`, { key, body: '{"name":' })
    expect([written.status, written.body.detail]).toEqual([403, expect.stringContaining('"configure"')])
  })

  test('has no permission on another instance of its organization: 403; an id that is missing, malformed or foreign is a 404', async () => {
    const [tenant, other] = [await newTenant(), await newTenant()]
    const sibling = await createInstance(tenant.key)
    const { key } = await scopedKey(tenant, { permissions })
    const message = { model: 'openclaw', input: 'hello' }
    const headersWith = (key: string) => ({ authorization: `Bearer ${key}`, 'x-request-id': 'same' })
    const send = (key: string, id: string) =>
      Promise.all([
        chowder.app.inject({ url: `/v1/instances/${id}`, headers: headersWith(key) }),
        chowder.app.inject({
          method: 'POST',
          url: `/v1/instances/${id}/session/main/responses`,
          headers: headersWith(key),
          payload: message,
        }),
      ])
    for (const answer of await send(key, sibling)) {
      expect([answer.statusCode, answer.json().detail]).toEqual([403, expect.stringContaining('not for this instance')])
    }
    const usual = (await send(tenant.key, missing)).map(({ statusCode, body }) => [statusCode, body])
    expect(usual.map(([status]) => status)).toEqual([404, 404])
    expect((await send(key, 'nonsense')).map((answer) => answer.json().detail)).toEqual(
      Array(2).fill('Instance not found.'),
    )
    for (const id of [missing, other.instanceId]) {
      expect((await send(key, id)).map(({ statusCode, body }) => [statusCode, body])).toEqual(usual)
    }
  })
})

describe('A12: the end of a key', () => {
  test('a revoked key is refused at once, and within 1 s by another process that has cached it', async () => {
    for (let round = 0; round < 5; round += 1) {
      const tenant = await newTenant()
      const { id, key } = await scopedKey(tenant)
      expect([await statusOf(key, tenant), await statusOf(key, tenant, replica)]).toEqual([200, 200])
      const { status } = await chowder.call('DELETE', `/v1/keys/${id}`, { key: tenant.key })
      const revokedAt = performance.now()
      expect([status, await statusOf(key, tenant)]).toEqual([204, 401])
      let goodAt = revokedAt
      const isRefused = async () => {
        const askedAt = performance.now()
        const status = await statusOf(key, tenant, replica)
        if (status === 200) goodAt = askedAt
        return status === 401
      }
      await until('the replica to refuse', isRefused)
      expect(goodAt - revokedAt).toBeLessThan(1000)
    }
  })

  test('revoking a key again is a 204 that changes nothing', async () => {
    const tenant = await newTenant()
    const { id } = await scopedKey(tenant)
    const revoke = async () => {
      const { status } = await chowder.call('DELETE', `/v1/keys/${id}`, { key: tenant.key })
      const { rows } = await chowder.database.pool.query('SELECT revoked_at FROM api_keys WHERE id = $1', [id])
      return { status, at: rows[0].revoked_at }
    }
    const first = await revoke()
    expect([first.status, await revoke()]).toEqual([204, first])
  })

  test('a cached key is refused after its expiry', async () => {
    const tenant = await newTenant()
    const endsAt = Date.now() + 5000
    const { id, key } = await scopedKey(tenant, { expires_at: new Date(endsAt).toISOString() })
    let goodAt = 0
    let slowestMs = 0
    let lastAskedAt = Date.now()
    const isRefused = async () => {
      const askedAt = Date.now()
      const status = await statusOf(key, tenant)
      slowestMs = Math.max(slowestMs, askedAt - lastAskedAt, Date.now() - askedAt)
      lastAskedAt = askedAt
      if (status === 200) goodAt = askedAt
      return status === 401
    }
    await until('the key to expire', isRefused, 20_000)
    expect(goodAt).toBeGreaterThan(endsAt - 500 - 2 * slowestMs)
    expect(goodAt).toBeLessThanOrEqual(endsAt)
    // The expiry is early by the duration of the query.
    const isOver = async () =>
      (await chowder.call('GET', `/v1/keys/${id}`, { key: tenant.key })).body.is_active === false
    await until('the key to be shown as inactive', isOver)
  })

  test.each([
    [
      'is revoked through another process',
      (id: string, key: string) => replica.call('DELETE', `/v1/keys/${id}`, { key }),
    ],
    [
      'expires',
      (id: string) => chowder.database.pool.query('UPDATE api_keys SET expires_at = now() WHERE id = $1', [id]),
    ],
  ])(
    'a stream is cut with response.failed in under 5 s once its key %s; an organization key’s goes on',
    async (_what, end) => {
      const gateway = await startStubGateway((response) => startStream(response).write(streamHead))
      onTestFinished(() => gateway.close())
      const tenant = await newTenant()
      const { id, key } = await scopedKey(tenant, { permissions: ['interact'] })
      await chowder.markReady(tenant.instanceId, gateway.endpoint)
      // Turns of one session run one after the other.
      const stream = (key: string, session: string) =>
        fetch(`${url}/v1/instances/${tenant.instanceId}/session/${session}/responses`, {
          method: 'POST',
          headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json' },
          body: JSON.stringify({ model: 'openclaw', input: 'hello', stream: true }),
        })
      const cut = await stream(key, 'cut')
      const kept = await stream(tenant.key, 'kept')
      expect([cut.status, kept.status]).toEqual([200, 200])

      const endedAt = performance.now()
      const stalledMs = watchStalls()
      await end(id, tenant.key)
      const { events } = readEvents(await cut.text())
      expectWholeStream(events)
      expect(events.at(-1)).toMatchObject({ type: 'response.failed', response: { error: { code: 'invalid_api_key' } } })
      expect(performance.now() - endedAt - stalledMs()).toBeLessThan(5000)
      const [ofCut, ofKept] = gateway.received
      await until('the gateway to be left', () => ofCut?.abortedAt !== undefined)
      ofKept?.response.end(delta('done'))
      expect(await kept.text()).toContain('"delta":"done"')
    },
  )

  test('a waiting request ends in under 5 s once its key is revoked', async () => {
    const tenant = await newTenant()
    const { id, key } = await scopedKey(tenant)
    const wait = (key: string, timeout: number) =>
      fetch(`${url}/v1/instances/${tenant.instanceId}/status?wait=running&timeout=${timeout}`, {
        headers: { authorization: `Bearer ${key}` },
      })
    let waiting = 0
    const count = () => {
      waiting += 1
    }
    chowder.app.server.on('request', count)
    onTestFinished(() => void chowder.app.server.off('request', count))
    const [kept, cut] = [wait(tenant.key, 6), wait(key, 20)]
    await until('both waits', () => waiting === 2)
    await Promise.all([statusOf(tenant.key, tenant), statusOf(key, tenant)]) // both share one query
    const endedAt = performance.now()
    const stalledMs = watchStalls()
    await replica.call('DELETE', `/v1/keys/${id}`, { key: tenant.key })
    await expect(cut).rejects.toThrow()
    expect(performance.now() - endedAt - stalledMs()).toBeLessThan(5000)
    expect((await kept).status).toBe(200)
  })

  test('the keys of a suspended organization are a 403, of a deleted one a 401', async () => {
    const tenant = await newTenant()
    const { key } = await scopedKey(tenant)
    const set = (what: string) =>
      chowder.database.pool.query(`UPDATE organizations SET ${what} WHERE id = $1`, [tenant.id])
    const answers = async (status: number) => {
      for (const [url, sent] of [
        ['/v1/organization', tenant.key],
        [`/v1/instances/${tenant.instanceId}`, key],
      ] as const) {
        await until(`a ${status}`, async () => (await chowder.call('GET', url, { key: sent })).status === status)
      }
    }
    await set('suspended_at = now()')
    await answers(403)
    expect((await chowder.call('GET', '/v1/organization', { key: tenant.key })).body.detail).toContain('suspended')
    await set('suspended_at = NULL')
    await answers(200)
    await set('deleted_at = now()')
    await answers(401)
  })
})

describe('organization keys', () => {
  const createKey = async (key: string, body: object = { name: 'second' }) =>
    (await chowder.call('POST', '/v1/organization/keys', { key, body })).body
  const list = async (key: string) => (await chowder.call('GET', '/v1/organization/keys', { key })).body
  const revoke = (key: string, id: string, through = chowder) =>
    through.call('DELETE', `/v1/organization/keys/${id}`, { key })

  test('the first can be rotated: another one has every permission, and revokes the first', async () => {
    const { id, key, instanceId } = await newTenant()
    const created = await createKey(key, { name: 'second', expires_at: '2099-12-31T23:59:59Z' })
    expect(created).toEqual({
      id: expect.any(String),
      organization_id: id,
      name: 'second',
      key_prefix: `${created.raw_key.slice(0, 12)}....`,
      is_active: true,
      expires_at: '2099-12-31T23:59:59Z',
      last_used_at: null,
      created_at: expect.stringMatching(timestamp),
      raw_key: expect.stringMatching(/^chd_org_[0-9a-f]{72}$/),
    })
    const second: string = created.raw_key
    expect((await chowder.call('GET', `/v1/instances/${instanceId}`, { key: second })).status).toBe(200)
    const [newest, first] = await list(second)
    expect([newest.name, first.name, newest.raw_key]).toEqual(['second', 'First key', undefined])
    expect((await revoke(second, first.id)).status).toBe(204)
    expect((await chowder.call('GET', '/v1/organization', { key })).status).toBe(401)
    expect((await list(second)).map(({ is_active }: { is_active: boolean }) => is_active)).toEqual([true, false])
    expect((await revoke(second, first.id)).status).toBe(204)
    expect((await chowder.call('GET', '/v1/keys', { key: second })).body).toEqual([])
  })

  test.each([
    ['no name', {}, 422],
    ['permissions', { name: 'x', permissions: ['read'] }, 422],
    ['a past expiry', { name: 'x', expires_at: '2020-01-01T00:00:00Z' }, 400],
  ])('%s is refused at their creation', async (_what, body, status) => {
    const { key } = await newTenant()
    expect((await chowder.call('POST', '/v1/organization/keys', { key, body })).status).toBe(status)
    expect(await list(key)).toHaveLength(1)
  })

  test('the last active one cannot be revoked, with any number of revoked, expired and scoped keys beside it', async () => {
    const tenant = await newTenant()
    const { key } = tenant
    await scopedKey(tenant)
    const [revoked, expired] = [await createKey(key), await createKey(key)]
    await revoke(key, revoked.id)
    await chowder.database.pool.query('UPDATE api_keys SET expires_at = now() WHERE id = $1', [expired.id])
    const first = (await list(key)).find(({ name }: { name: string }) => name === 'First key')
    const { status, body } = await revoke(key, first.id)
    expect([status, body.detail]).toEqual([409, expect.stringContaining('last active organization key')])
    expect((await revoke(key, expired.id)).status).toBe(204)
    expect((await chowder.call('GET', '/v1/organization', { key })).status).toBe(200)
  })

  test('one of the last two remains when both are revoked at once through two processes, 20 times', async () => {
    for (let round = 0; round < 20; round += 1) {
      const { key } = await chowder.signUp({ providerKey: null })
      const second = await createKey(key)
      const ids: string[] = (await list(key)).map(({ id }: { id: string }) => id)
      await replica.call('GET', '/v1/organization', { key: second.raw_key })
      const answers = await Promise.all([
        revoke(key, present(ids[0])),
        revoke(second.raw_key, present(ids[1]), replica),
      ])
      expect(answers.filter(({ status }) => status === 204)).toHaveLength(1)
      const { rows } = await chowder.database.pool.query(
        'SELECT count(*)::int AS active FROM api_keys WHERE id = ANY($1) AND revoked_at IS NULL',
        [ids],
      )
      expect(rows[0].active).toBe(1)
    }
  })
})

describe('last_used_at', () => {
  const written = async (id: string) => {
    const { rows } = await chowder.database.pool.query('SELECT writes FROM uses WHERE id = $1', [id])
    return rows[0]?.writes ?? 0
  }
  beforeAll(() =>
    chowder.database.pool.query(`
      CREATE TABLE uses (id uuid PRIMARY KEY, writes int NOT NULL);
      CREATE FUNCTION count_use() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO uses VALUES (NEW.id, 1) ON CONFLICT (id) DO UPDATE SET writes = uses.writes + 1; RETURN NEW; END $$;
      CREATE TRIGGER count_use AFTER UPDATE OF last_used_at ON api_keys FOR EACH ROW EXECUTE FUNCTION count_use()`),
  )

  test('is null before the first use, then the time of a use, written once a minute by all processes together', async () => {
    const tenant = await newTenant()
    const { id, key } = await scopedKey(tenant)
    const lastUsed = async () => (await chowder.call('GET', `/v1/keys/${id}`, { key: tenant.key })).body.last_used_at
    const use = () => Promise.all([statusOf(key, tenant), statusOf(key, tenant, replica)])
    expect(await lastUsed()).toBeNull()

    // Longer than callers are cached and uses are held back, so that each process could write.
    const busyUntil = performance.now() + 3500
    while (performance.now() < busyUntil) {
      await use()
      await sleep(20)
    }
    await until('the first write', () => written(id))
    expect(await lastUsed()).toMatch(timestamp)
    expect(await written(id)).toBe(1)

    await chowder.database.pool.query(
      "UPDATE api_keys SET last_used_at = last_used_at - interval '1 minute' WHERE id = $1",
      [id],
    )
    const before = await written(id)
    await until('the next write', async () => {
      await use()
      return (await written(id)) > before
    })
    expect(await written(id)).toBe(before + 1)
  })

  test('is not lost when a process closes right after the use', async () => {
    const tenant = await newTenant()
    const { id, key } = await scopedKey(tenant)
    const third = await openTestChowder({ sandboxes: new FakeDriver(), database: chowder.database })
    expect(await statusOf(key, tenant, third)).toBe(200)
    await third.close()
    expect(await written(id)).toBe(1)
  })

  test('that cannot be written is logged once, and does not disturb requests', async () => {
    const tenant = await newTenant()
    const { key } = await scopedKey(tenant)
    const other = await scopedKey(tenant)
    const { pool } = chowder.database
    await pool.query('ALTER TABLE uses RENAME TO away')
    onTestFinished(async () => void (await pool.query('ALTER TABLE away RENAME TO uses')))
    const complaints = () => chowder.logged.filter((line) => line.includes('failed to update the last uses of keys'))
    await until('the complaint', async () => {
      expect(await statusOf(key, tenant)).toBe(200)
      return complaints().length > 0
    })
    const busyUntil = performance.now() + 2500
    while (performance.now() < busyUntil) expect(await statusOf(other.key, tenant)).toBe(200)
    expect(complaints()).toHaveLength(1)
  })
})

describe('what any key may ask', () => {
  test('an organization key and a scoped key are told what they are', async () => {
    const tenant = await newTenant()
    const { body: organization } = await chowder.call('GET', '/v1/key', { key: tenant.key })
    expect(organization).toMatchObject({
      kind: 'organization',
      organization_id: tenant.id,
      organization_name: 'Acme',
      key_prefix: `${tenant.key.slice(0, 12)}....`,
      permissions: [...permissions],
      instance_ids: null,
      expires_at: null,
      limits: { requests_per_minute: null, organization_requests_per_minute: null },
    })
    const { id, key } = await scopedKey(tenant, { expires_at: inAnHour(), permissions: ['interact'] })
    const { status, body } = await chowder.call('GET', '/v1/key', { key })
    expect([status, body]).toMatchObject([
      200,
      {
        kind: 'scoped',
        id,
        name: 'frontend-chat',
        organization_name: 'Acme',
        permissions: ['interact'],
        instance_ids: [tenant.instanceId],
        expires_at: expect.stringMatching(timestamp),
      },
    ])
    expect(JSON.stringify(body)).not.toContain(key)
    expect((await chowder.call('GET', '/v1/instances', { key })).status).toBe(403)
  })

  test('the releases of OpenClaw, of which one is the default', async () => {
    const tenant = await newTenant()
    const { key } = await scopedKey(tenant)
    const { body: releases } = await chowder.call('GET', '/v1/releases', { key })
    const [first] = releases.filter((release: { default: boolean }) => release.default)
    expect(first).toMatchObject({ version: expect.stringMatching(/^\d{4}\.\d+\.\d+/) })
    expect(first.plugin_channels).toContain('whatsapp')
    const wanted = { name: 'a', openclaw_version: first.openclaw_version }
    const created = await chowder.call('POST', '/v1/instances', { key: tenant.key, body: wanted })
    expect(created.status).toBe(201)
  })
})
