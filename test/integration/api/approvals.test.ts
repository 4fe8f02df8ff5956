import { randomUUID } from 'node:crypto'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { approvalLink } from '#api/approvals/link.ts'
import type { Event } from '#database/schema.ts'
import { addApprovals, type FakeApprovals } from '../../support/fake-approvals.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { type FakeGateway, startFakeGateway } from '../../support/fake-gateway.ts'
import { present } from '../../support/present.ts'
import { openTestChowder, type TestChowder } from '../../support/test-chowder.ts'

let gateway: FakeGateway
let approvals: FakeApprovals
let chowder: TestChowder
let organizationId: string
let key: string
let id: string

beforeAll(async () => {
  gateway = await startFakeGateway({})
  approvals = addApprovals(gateway)
  chowder = await openTestChowder({ sandboxes: new FakeDriver() })
  ;({ key, id: organizationId } = await chowder.signUp())
  id = (await chowder.call('POST', '/v1/instances', { key, body: { name: '<b>it</b>', approvals: 'ask' } })).body.id
  await chowder.markReady(id, gateway.endpoint)
})
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})

const path = (approval = '') => `/v1/instances/${id}/approvals${approval && `/${approval}`}`
const read = (approval = '', as = key) => chowder.call('GET', path(approval), { key: as })
const answer = (approval: string, body: object, as = key) => chowder.call('POST', path(approval), { key: as, body })
const resolved = async (approval: string) =>
  (await chowder.call('GET', `/v1/instances/${id}/events?type=approval.resolved`, { key })).body.filter(
    ({ subject }: { subject: string }) => subject === approval,
  )
const keyWith = async (permissions: string[]): Promise<string> =>
  (await chowder.call('POST', '/v1/keys', { key, body: { name: 'k', instance_ids: [id], permissions } })).body.raw_key

describe('the approvals of an instance', () => {
  test('are read, and answered once', async () => {
    const approval = approvals.ask('rm -r reports')
    expect((await read(approval)).body).toMatchObject({ id: approval, status: 'pending', command: 'rm -r reports' })
    const { created_at, expires_at } = (await read(approval)).body
    expect(Date.parse(expires_at) - Date.parse(created_at)).toBe(25 * 60_000)
    const first = await answer(approval, { decision: 'deny', reason: 'needed' })
    expect([first.status, first.body]).toMatchObject([200, { status: 'denied', reason: 'user' }])
    const second = await answer(approval, { decision: 'approve' })
    expect([second.status, second.body]).toMatchObject([200, { status: 'denied' }])
    expect(await resolved(approval)).toMatchObject([{ reason: 'denied: needed', actor: { type: 'key' } }])
    expect((await read()).body).toMatchObject([{ id: approval, status: 'denied' }])
  })

  test('have one first answer of ten at once, and one event', async () => {
    const approval = approvals.ask('make')
    const decisions = Array.from({ length: 10 }, (_, at) => (at % 2 === 0 ? 'approve' : 'deny'))
    const all = await Promise.all(decisions.map((decision) => answer(approval, { decision })))
    expect(new Set(all.map(({ body }) => body.status)).size).toBe(1)
    expect(await resolved(approval)).toHaveLength(1)
  })

  test.each([
    ['an unknown id', () => randomUUID()],
    ['a malformed id', () => 'x'],
    ['one of another kind', () => approvals.ask('x', { kind: 'plugin' })],
    ['one that cannot be read', () => approvals.ask('x', { commandText: 7 })],
  ])('a 404: %s', async (_what, make) => {
    const approval = make()
    expect((await read(approval)).status).toBe(404)
    expect((await answer(approval, { decision: 'approve' })).status).toBe(404)
    approvals.delete(approval)
  })

  test('a decision that the gateway does not offer is refused, and not sent', async () => {
    const approval = approvals.ask('make', { allowedDecisions: ['deny'] })
    expect((await answer(approval, { decision: 'approve' })).body.error).toMatchObject({
      code: 'invalid_value',
      param: 'decision',
    })
    expect((await read(approval)).body.status).toBe('pending')
  })

  test('need a permission of their own', async () => {
    const approval = approvals.ask('make')
    const without = await keyWith(['read', 'interact', 'sessions', 'configure', 'files', 'channels'])
    expect((await read('', without)).status).toBe(403)
    expect((await answer(approval, { decision: 'approve' }, without)).status).toBe(403)
    const allowed = await keyWith(['approve'])
    expect((await answer(approval, { decision: 'approve' }, allowed)).body.status).toBe('allowed')
  })

  test('are not there for another organization', async () => {
    const approval = approvals.ask('make')
    const other = await chowder.signUp()
    for (const status of [
      (await read('', other.key)).status,
      (await read(approval, other.key)).status,
      (await answer(approval, { decision: 'approve' }, other.key)).status,
    ])
      expect(status).toBe(404)
    expect((await read(approval)).body.status).toBe('pending')
  })
})

describe('the page of an approval', () => {
  /** The path of the link in the webhook of an event. */
  const linkOf = (approval: string, createdAt = new Date()) => {
    const event = { type: 'approval.requested', organizationId, instanceId: id, subject: approval, createdAt } as Event
    const { approve_url } = approvalLink(chowder.deps.vault, 'http://chowder.test', event)
    return new URL(present(approve_url)).pathname
  }
  const get = (url: string) => chowder.app.inject({ method: 'GET', url })
  const press = (url: string, decision: string) =>
    chowder.app.inject({
      method: 'POST',
      url,
      headers: { 'content-type': 'application/x-www-form-urlencoded' },
      payload: `decision=${decision}`,
    })

  test('shows the command as text, and answers it once', async () => {
    const approval = approvals.ask('echo "<script>alert(1)</script>"')
    const url = linkOf(approval)
    const page = await get(url)
    expect(page.headers).toMatchObject({ 'referrer-policy': 'no-referrer', 'cache-control': 'no-store' })
    expect(page.body).toContain('&lt;script&gt;')
    expect(page.body).not.toMatch(/<script|<b>/)
    expect((await press(url, 'maybe')).statusCode).toBe(400)
    expect((await read(approval)).body.status).toBe('pending')
    expect((await press(url, 'approve')).body).toContain('The command was approved.')
    expect((await press(url, 'deny')).body).toContain('The command was approved.')
    expect(await resolved(approval)).toMatchObject([{ reason: 'allowed: by its link', actor: { id: null } }])
  })

  test('is not there with a link that is wrong or late', async () => {
    const approval = approvals.ask('make')
    const url = linkOf(approval)
    const late = linkOf(approval, new Date(Date.now() - 26 * 60_000))
    const elsewhere = `/v1/approve/${chowder.deps.vault.seal('{}', 'client_tokens')}`
    for (const wrong of [`${url.slice(0, -4)}AAAA`, late, elsewhere, '/v1/approve/x']) {
      expect((await get(wrong)).statusCode).toBe(404)
      expect((await press(wrong, 'approve')).statusCode).toBe(404)
    }
    expect((await read(approval)).body.status).toBe('pending')
  })

  test('leaves no link in the log', async () => {
    const url = linkOf(approvals.ask('make'))
    await get(url)
    expect(chowder.logged.join('')).not.toContain(url.slice('/v1/approve/'.length))
  })
})

describe('approvals: ask', () => {
  const create = (body: object) => chowder.call('POST', '/v1/instances', { key, body: { name: 'x', ...body } })

  test.each(['ask', 'off'])('is refused beside overrides that say the same: %s', async (mode) => {
    const { status, body } = await create({ approvals: mode, openclaw_config: { tools: { exec: { mode: 'full' } } } })
    expect([status, body.error]).toMatchObject([400, { code: 'invalid_openclaw_config', param: 'approvals' }])
  })

  test.each(['ask', 'off'])('is refused for an agent with two rooms: %s', async (approvals) => {
    const { status, body } = await create({ approvals, isolation: 'two_rooms' })
    expect([status, body.error]).toMatchObject([400, { code: 'invalid_value', param: 'approvals' }])
    const { id: existing } = (await create({ approvals })).body
    const url = `/v1/instances/${existing}`
    expect((await chowder.call('PATCH', url, { key, body: { isolation: 'two_rooms' } })).status).toBe(400)
  })

  test('is unknown with another word', async () => {
    expect((await create({ approvals: 'never' })).status).toBe(422)
  })
})
