import { createHmac, randomUUID } from 'node:crypto'
import { Webhook } from 'standardwebhooks'
import { afterAll, describe, expect, test } from 'vitest'
import { fillTemplate } from '#api/hooks/template.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { startFakeGateway } from '../../support/fake-gateway.ts'
import { openTestChowder } from '../../support/test-chowder.ts'

const gateway = await startFakeGateway({})
const chowder = await openTestChowder({ sandboxes: new FakeDriver(() => gateway.endpoint) })
const { pool } = chowder.database
const { key } = await chowder.signUp()
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})

const as = (method: 'GET' | 'POST' | 'PATCH' | 'DELETE', path: string, body?: unknown) =>
  chowder.call(method, path, { key, ...(body !== undefined && { body }) })

async function create(body: object) {
  const instance = await chowder.createReady(key, gateway.endpoint)
  const path = `/v1/instances/${instance}/hooks`
  const { status, body: hook } = await as('POST', path, { input: 'Say {{event}}: {{body.text}}', ...body })
  expect(status).toBe(201)
  const call = async (payload: string, headers: Record<string, string>) => {
    const url = `/v1/hooks/${hook.id}`
    const answer = await chowder.app.inject({
      method: 'POST',
      url,
      headers: { 'content-type': 'application/json', ...headers },
      payload,
    })
    return { status: answer.statusCode, body: answer.json() }
  }
  const read = async () => (await as('GET', `${path}/${hook.id}`)).body
  return { hook, instance, path: `${path}/${hook.id}`, call, read }
}

const hmac = (secret: string, text: string) => createHmac('sha256', secret).update(text).digest('hex')
const github = (secret: string, payload: string, delivery: string = randomUUID(), event = 'issues') => ({
  'x-hub-signature-256': `sha256=${hmac(secret, payload)}`,
  'x-github-delivery': delivery,
  'x-github-event': event,
})

describe('a call', () => {
  test('of GitHub begins a turn from the template, in the session of its issue, and once when it is repeated', async () => {
    const { hook, instance, call, read } = await create({ kind: 'github', session_id: 'issue-{{body.number}}' })
    expect(hook.url).toMatch(new RegExp(`/v1/hooks/${hook.id}$`))
    const payload = JSON.stringify({ text: 'it is broken', number: 7 })
    const headers = github(hook.secret, payload)
    const first = await call(payload, headers)
    expect(first).toMatchObject({ status: 200, body: { response_id: expect.stringMatching(/^resp_/) } })
    expect(await call(payload, headers)).toEqual(first)
    const { rows } = await pool.query('SELECT session_key FROM responses WHERE instance_id = $1', [instance])
    expect(rows).toEqual([{ session_key: `s-${Buffer.from('issue-7').toString('hex')}` }])
    const at = `/v1/instances/${instance}/responses/${first.body.response_id}/input_items`
    expect(JSON.stringify((await as('GET', at)).body)).toContain('Say issues: it is broken')
    const { calls } = await read()
    expect(calls).toMatchObject([{ outcome: 'started', response_id: first.body.response_id, reason: null }])
    const { body: history } = await as('GET', `/v1/instances/${instance}/events?type=hook.started`)
    expect(history).toMatchObject([{ subject: hook.id, reason: `It began ${first.body.response_id}.` }])
  })

  test('of GitHub that only sets the hook up, and one to a paused hook, begin nothing', async () => {
    const { hook, path, call, read } = await create({ kind: 'github', secret: 'a-secret-of-mine' })
    expect(hook.secret).toBe('a-secret-of-mine')
    const ping = await call('{}', github(hook.secret, '{}', 'one', 'ping'))
    expect(ping).toEqual({ status: 200, body: { response_id: null } })
    await as('PATCH', path, { paused: true })
    expect((await call('{}', github(hook.secret, '{}', 'two'))).body).toEqual({ response_id: null })
    expect((await read()).calls.map(({ outcome }: { outcome: string }) => outcome)).toEqual(['ignored', 'ignored'])
  })

  test('of Slack: the challenge is answered, and an event begins a turn', async () => {
    const { hook, call } = await create({ kind: 'slack', secret: 'slack-signing-secret', input: '{{body.event.text}}' })
    const signed = (payload: string, at = Math.floor(Date.now() / 1000)) => ({
      'x-slack-request-timestamp': String(at),
      'x-slack-signature': `v0=${hmac(hook.secret, `v0:${at}:${payload}`)}`,
    })
    const challenge = JSON.stringify({ type: 'url_verification', challenge: 'abc' })
    expect((await call(challenge, signed(challenge))).body).toEqual({ response_id: null, challenge: 'abc' })
    const event = JSON.stringify({ type: 'event_callback', event_id: 'Ev1', event: { type: 'message', text: 'hi' } })
    expect((await call(event, signed(event))).body.response_id).toMatch(/^resp_/)
    const old = await call(event, signed(event, Math.floor(Date.now() / 1000) - 400))
    expect([old.status, old.body.error.code]).toEqual([401, 'invalid_signature'])
  })

  test('by Standard Webhooks begins a turn', async () => {
    const { hook, call } = await create({ kind: 'standard' })
    const payload = JSON.stringify({ type: 'order.paid', text: 'x' })
    const at = new Date()
    const headers = {
      'webhook-id': 'msg_1',
      'webhook-timestamp': String(Math.floor(at.getTime() / 1000)),
      'webhook-signature': new Webhook(hook.secret).sign('msg_1', at, payload),
    }
    expect((await call(payload, headers)).body.response_id).toMatch(/^resp_/)
    expect((await call(`${payload} `, headers)).status).toBe(401)
  })

  test('that the agent cannot take is refused and logged, and a repetition tries again', async () => {
    const { hook, instance, call, read } = await create({ kind: 'github' })
    const stop = `UPDATE instances SET desired_state = $2 WHERE id = $1`
    await pool.query(stop, [instance, 'stopped'])
    const headers = github(hook.secret, '{}')
    expect((await call('{}', headers)).status).toBe(409)
    expect((await read()).calls).toMatchObject([{ outcome: 'failed', response_id: null }])
    await pool.query(stop, [instance, 'running'])
    await new Promise((resolve) => setTimeout(resolve, 200)) // gateways are cached for 100 ms
    expect((await call('{}', headers)).body.response_id).toMatch(/^resp_/)
  })

  test('without a good signature, of another form, or to no hook changes nothing', async () => {
    const { hook, path, call, read } = await create({ kind: 'github' })
    for (const headers of [{}, github('another secret', '{}'), { ...github(hook.secret, '{"a":1}') }]) {
      const { status, body } = await call('{}', headers)
      expect([status, body.error.code]).toEqual([401, 'invalid_signature'])
    }
    const list = await call('[]', github(hook.secret, '[]'))
    expect([list.status, list.body.error.code]).toEqual([400, 'invalid_json'])
    expect((await read()).calls).toEqual([])
    expect((await as('DELETE', path)).status).toBe(204)
    expect((await call('{}', github(hook.secret, '{}'))).status).toBe(404)
  })
})

test('a template takes own values alone', () => {
  const values = { event: 'push', body: { a: { b: [1, 'two'] }, text: '{{event}}', n: 0, no: null } }
  expect(fillTemplate('{{event}} {{ body.a.b.1 }} {{body.a}} {{body.n}}', values)).toBe('push two {"b":[1,"two"]} 0')
  expect(fillTemplate('[{{body.text}}]', values)).toBe('[{{event}}]')
  expect(fillTemplate('[{{body.toString}}{{body.__proto__}}{{nothing}}]', values)).toBe('[]')
})

test('a secret of Standard Webhooks has its form, and 20 hooks are the most', async () => {
  const instance = await chowder.createReady(key, gateway.endpoint)
  const path = `/v1/instances/${instance}/hooks`
  const bad = await as('POST', path, { kind: 'standard', secret: 'too-simple', input: 'x' })
  expect([bad.status, bad.body.error.param]).toEqual([400, 'secret'])
  for (let number = 0; number < 20; number += 1) await as('POST', path, { kind: 'github', input: 'x' })
  expect((await as('POST', path, { kind: 'github', input: 'x' })).body.error.code).toBe('too_many_resources')
})
