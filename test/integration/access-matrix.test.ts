import { randomBytes, randomUUID } from 'node:crypto'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { permissions } from '#database/schema.ts'
import { newApiKey } from '#http/api-key.ts'
import { requireErrorBody } from '../support/error-body.ts'
import { type FakeClawHub, startFakeClawHub } from '../support/fake-clawhub.ts'
import { FakeDriver } from '../support/fake-driver.ts'
import { type FakeGateway, startFakeGateway } from '../support/fake-gateway.ts'
import { addSessions } from '../support/fake-sessions.ts'
import { addFakeSkills } from '../support/fake-skills.ts'
import { injectBriefly } from '../support/inject-briefly.ts'
import {
  checkerOf,
  type DocumentedOperation,
  operationsOf,
  readDocument,
  requestOf,
  resolve,
} from '../support/operations.ts'
import { present } from '../support/present.ts'
import { openTestChowder, type TestChowder } from '../support/test-chowder.ts'
import { until } from '../support/until.ts'

const document = await readDocument()
const check = checkerOf(document)

/** Calls that end something come after the calls that need it. */
const rank = ({ name }: DocumentedOperation) => {
  if (name === 'DELETE /v1/organization') return 4
  if (name === 'DELETE /v1/instances/{instance_id}') return 3
  if (name.startsWith('DELETE')) return 2
  return /\/(start|stop|restart)$/.test(name) ? 1 : 0
}
const operations = operationsOf(document).sort((a, b) => rank(a) - rank(b))

let gateway: FakeGateway
let hub: FakeClawHub
let chowder: TestChowder

/** The values of path parameters: of our organization, and of another one. */
let ours: Record<string, string>
let theirs: Record<string, string>
let missing: Record<string, string>

const organizationKey: Record<string, string> = {}
/** Scoped keys by their permissions. */
const scoped: Record<string, string> = {}

const everywhere = {
  session_id: 'main',
  channel: 'whatsapp',
  skill_name: 'web-search',
  path: 'notes.txt',
  q: 'web',
  event_id: '1',
  approval_id: randomUUID(),
  job_id: 'tick',
}

async function create(path: string, key: string, body: object): Promise<{ id: string; raw_key: string }> {
  const answer = await chowder.call('POST', path, { key, body })
  expect(answer.status).toBe(201)
  return answer.body
}

const issue = (key: string, instanceId: string, held: readonly string[] = permissions) =>
  create('/v1/keys', key, { name: 'k', instance_ids: [instanceId], permissions: held })

beforeAll(async () => {
  gateway = await startFakeGateway({})
  hub = await startFakeClawHub()
  const driver = new FakeDriver(() => gateway.endpoint)
  addFakeSkills(gateway, hub, () => driver.files(present(ours.instance_id)))
  addSessions(gateway)
  chowder = await openTestChowder({ sandboxes: driver, clawhubUrl: hub.url })
  await chowder.startWorker()
  const [own, other, suspended] = [
    await chowder.signUp(),
    await chowder.signUp(),
    await chowder.signUp({ providerKey: null }), // a used key is cached for a second
  ]
  const [instance, sibling, foreign] = [
    await create('/v1/instances', own.key, { name: 'mine' }),
    await create('/v1/instances', own.key, { name: 'sibling' }),
    await create('/v1/instances', other.key, { name: 'theirs' }),
  ]
  Object.assign(organizationKey, { own: own.key, other: other.key, suspended: suspended.key })
  for (const permission of permissions) {
    scoped[permission] = (await issue(own.key, instance.id, [permission])).raw_key
  }
  scoped.all = (await issue(own.key, instance.id)).raw_key
  scoped.sibling = (await issue(own.key, sibling.id)).raw_key
  scoped.foreign = (await issue(other.key, foreign.id)).raw_key
  const [expired, revoked] = [await issue(own.key, instance.id), await issue(own.key, instance.id)]
  scoped.expired = expired.raw_key
  scoped.revoked = revoked.raw_key
  const { pool } = chowder.database
  await pool.query(`UPDATE api_keys SET expires_at = now() - interval '1 second' WHERE id = $1`, [expired.id])
  expect((await chowder.call('DELETE', `/v1/keys/${revoked.id}`, { key: own.key })).status).toBe(204)
  await pool.query('UPDATE organizations SET suspended_at = now() WHERE id = $1', [suspended.id])

  // A key to read and revoke, of the kind of each path.
  const keysOf = async (key: string, instanceId: string) => ({
    '/v1/keys': (await issue(key, instanceId)).id,
    '/v1/organization/keys': (await create('/v1/organization/keys', key, { name: 'k' })).id,
  })
  const thingsOf = async (key: string, instanceId: string) => ({
    ...everywhere,
    instance_id: instanceId,
    webhook_id: (await create('/v1/webhooks', key, { url: 'http://127.0.0.1:9/' })).id,
    schedule_id: (await create(`/v1/instances/${instanceId}/schedules`, key, { cron: '0 7 * * *', input: 'x' })).id,
    hook_id: (await create(`/v1/instances/${instanceId}/hooks`, key, { kind: 'github', input: 'x' })).id,
    ...(await keysOf(key, instanceId)),
  })
  ours = await thingsOf(own.key, instance.id)
  theirs = await thingsOf(other.key, foreign.id)
  missing = {
    ...everywhere,
    instance_id: randomUUID(),
    webhook_id: randomUUID(),
    schedule_id: randomUUID(),
    hook_id: randomUUID(),
    '/v1/keys': randomUUID(),
    '/v1/organization/keys': randomUUID(),
  }
  for (const [id, key] of [
    [instance.id, own.key],
    [foreign.id, other.key],
  ]) {
    const status = async () =>
      (await chowder.call('GET', `/v1/instances/${id}/status`, { key: present(key) })).body.status
    await until('the instance to run', async () => (await status()) === 'running')
    const said = { model: 'openclaw', input: 'hello' }
    const { body } = await chowder.call('POST', `/v1/instances/${id}/responses`, { key: present(key), body: said })
    if (id === instance.id) ours.response_id = missing.response_id = body.id
    else theirs.response_id = body.id
  }
})
afterAll(async () => {
  await chowder.close()
  await gateway.close()
  await hub.close()
})

/** Sends the documented request of an operation, with one of three sets of path values and an Authorization header. */
async function call(operation: DocumentedOperation, values: Record<string, string>, authorization?: string) {
  const keyId = values[operation.path.replace(/\/\{key_id\}.*/, '')]
  const request = requestOf(operation, { ...values, ...(keyId !== undefined && { key_id: keyId }) })
  // The id is in the body of an error. Refusals that must not differ are compared whole.
  const headers = { ...request.headers, 'x-request-id': 'same', ...(authorization !== undefined && { authorization }) }
  const answer = await injectBriefly(chowder.app, { ...request, headers })
  expect(Object.keys(operation.operation.responses), `the document has no ${answer.statusCode}`).toContain(
    String(answer.statusCode),
  )
  expect(answer.headers['x-request-id']).toBe('same')
  if (answer.statusCode >= 400) {
    expect(check(resolve(document, { $ref: '#/ApiError' }), answer.json())).toEqual([])
    requireErrorBody(answer.statusCode, answer.json(), answer.headers['x-request-id'])
  }
  return answer
}

const bearer = (key: string | undefined) => `Bearer ${key}`

/** Everything that can tell two answers apart. */
function seen({ statusCode, body, headers }: Awaited<ReturnType<typeof call>>) {
  const { 'x-request-id': _id, date: _date, ...rest } = headers
  return { statusCode, body, headers: rest }
}

describe('A1, A2: the key that each call needs', () => {
  test.each(operations)('$name', async (documented) => {
    const { 'x-permission': access } = documented.operation
    const { path } = documented
    if (access === 'public') {
      for (const authorization of [
        undefined,
        'Bearer nonsense',
        bearer(organizationKey.other),
        bearer(scoped.expired),
      ]) {
        const { statusCode } = await call(documented, ours, authorization)
        expect([401, 403, 404]).not.toContain(statusCode)
      }
      return
    }

    const unauthenticated = {
      'no key': undefined,
      'an empty one': 'Bearer ',
      'another scheme': `Basic ${organizationKey.own}`,
      'a malformed key': 'Bearer chd_org_short',
      'two keys': `Bearer ${organizationKey.own} ${organizationKey.own}`,
      'an unknown organization key': bearer(newApiKey('organization')),
      'an unknown scoped key': bearer(newApiKey('scoped')),
      'an unknown key without a checksum': bearer(`chd_sk_${randomBytes(32).toString('hex')}`),
      'an expired key': bearer(scoped.expired),
      'a revoked key': bearer(scoped.revoked),
      'a client token of another server': `Bearer chd_ct_v1.${randomBytes(200).toString('base64url')}`,
    }
    for (const [caller, authorization] of Object.entries(unauthenticated)) {
      expect((await call(documented, ours, authorization)).statusCode, caller).toBe(401)
    }
    expect((await call(documented, ours, bearer(organizationKey.suspended))).statusCode).toBe(403)

    if (access === 'any') {
      const mustRead = path === '/v1/events/stream' // it shows the instances of the key
      for (const key of [organizationKey.own, scoped.sibling, ...permissions.map((permission) => scoped[permission])]) {
        const isRefused = mustRead && permissions.some((name) => name !== 'read' && scoped[name] === key)
        expect((await call(documented, ours, bearer(key))).statusCode).toBe(isRefused ? 403 : 200)
      }
      return
    }
    const mayBeScoped = access !== 'org'
    const forbidden = mayBeScoped
      ? [...permissions.filter((permission) => permission !== access), 'sibling']
      : [...permissions, 'all', 'sibling', 'foreign']
    for (const caller of forbidden) {
      expect((await call(documented, ours, bearer(scoped[caller]))).statusCode, caller).toBe(403)
    }

    if (/\{(instance|key|webhook)_id\}/.test(path)) {
      const strangers = mayBeScoped ? [organizationKey.other, scoped.foreign] : [organizationKey.other]
      for (const key of strangers) {
        const foreign = await call(documented, ours, bearer(key))
        expect(foreign.statusCode).toBe(404)
        expect(seen(foreign)).toEqual(seen(await call(documented, missing, bearer(key))))
      }
      const malformed = {
        ...ours,
        instance_id: 'nonsense',
        webhook_id: 'nonsense',
        '/v1/keys': 'nonsense',
        '/v1/organization/keys': 'nonsense',
      }
      for (const key of mayBeScoped ? [organizationKey.own, scoped.all] : [organizationKey.own]) {
        const foreign = seen(await call(documented, theirs, bearer(key)))
        expect(foreign.statusCode).toBe(404)
        expect(foreign).toEqual(seen(await call(documented, missing, bearer(key))))
        const { detail, error } = (await call(documented, malformed, bearer(key))).json()
        const { detail: usual, error: usualError } = JSON.parse(foreign.body)
        expect([detail, error.code]).toEqual([usual, usualError.code])
      }
    }

    const allowed = mayBeScoped ? [scoped[access], scoped.all, organizationKey.own] : [organizationKey.own]
    for (const key of allowed) {
      const { statusCode, body } = await call(documented, ours, bearer(key))
      expect([401, 403]).not.toContain(statusCode)
      if (path.includes('{key_id}')) expect(statusCode).not.toBe(404)
      expect(body.startsWith('{"detail":"Instance not found."')).toBe(false)
    }
  })
})
