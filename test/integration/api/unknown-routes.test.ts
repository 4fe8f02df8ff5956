import { once } from 'node:events'
import { type AddressInfo, connect } from 'node:net'
import type { InjectOptions } from 'fastify'
import { afterAll, describe, expect, test } from 'vitest'
import { newApiKey } from '#http/api-key.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { openTestChowder } from '../../support/test-chowder.ts'

const chowder = await openTestChowder({ sandboxes: new FakeDriver() })
const { key } = await chowder.signUp()
const id = (await chowder.call('POST', '/v1/instances', { key, body: { name: 'a' } })).body.id
await chowder.app.listen({ host: '127.0.0.1', port: 0 })
afterAll(() => chowder.close())

/** Sends a request as it is written, and reads the answer. */
async function exchange(...lines: string[]) {
  const { port } = chowder.app.server.address() as AddressInfo
  const socket = connect(port, '127.0.0.1')
  const chunks: Buffer[] = []
  socket.on('data', (chunk) => chunks.push(chunk))
  socket.setTimeout(10_000, () => socket.destroy(new Error('no end after 10 s')))
  socket.write(`${lines.join('\r\n')}\r\n\r\n`)
  await once(socket, 'close')
  const [head = '', body = ''] = Buffer.concat(chunks).toString().split('\r\n\r\n')
  return { head, status: Number(head.split(' ')[1]), detail: JSON.parse(body).detail }
}

describe('a path that no route has', () => {
  test.each<[InjectOptions['method'], string, string]>([
    ['GET', '/v1/nothing', 'GET /docs lists all.'],
    ['GET', '/metrics', 'Metrics have a port of their own: the operator of this server sets METRICS_PORT.'],
    ['GET', '/v1/instance', 'Did you mean GET /v1/instances?'],
    ['POST', '/v1/organisation/signup', 'Did you mean POST /v1/organization/signup?'],
    ['POST', '/instances', 'Did you mean POST /v1/instances?'],
    ['GET', '/v1/organization/', 'Did you mean GET /v1/organization?'],
    ['GET', '/docs/nothing/', 'GET /docs lists all.'],
    ['GET', '/v1//instances', 'Did you mean GET /v1/instances?'],
    ['POST', '/v1/chat/completions', 'Did you mean POST /v1/instances/{instance_id}/chat/completions?'],
    ['POST', '/v1/instances/7/v1/responses', 'Did you mean POST /v1/instances/7/responses?'],
    ['POST', '/v1/instances/7/stat', 'Did you mean POST /v1/instances/7/start?'],
    ['GET', '/v1/instances//start', 'Did you mean POST /v1/instances/{instance_id}/start?'],
    ['GET', '/v1/instances//', 'Did you mean GET /v1/instances?'],
    ['GET', '/', 'GET /docs lists all.'],
  ])('%s %s says where to look', async (method, url, hint) => {
    const { status, body } = await chowder.call(method, url, { key })
    expect([status, body.detail]).toEqual([404, `No route ${method} ${url}. ${hint}`])
  })

  test('is the reference for a browser that opens the server', async () => {
    const headers = { accept: 'text/html,application/xhtml+xml;q=0.9,*/*;q=0.8' }
    const answer = await chowder.app.inject({ url: '/', headers })
    expect([answer.statusCode, answer.headers.location]).toEqual([302, 'docs'])
  })
})

describe('a path with other methods', () => {
  test.each<[InjectOptions['method'], string, string]>([
    ['PUT', '/v1/instances', 'GET, HEAD, OPTIONS, POST'],
    ['GET', '/v1/instances/7/start', 'OPTIONS, POST'],
    ['DELETE', '/v1/organization/signup', 'OPTIONS, POST'],
    ['POST', '/healthz', 'GET, HEAD, OPTIONS'],
    ['PATCH', '/v1/instances/7/files/content', 'GET, HEAD, OPTIONS, PUT'],
  ])('%s %s is a 405 that names them', async (method, url, allow) => {
    const { status, body, headers } = await chowder.call(method, url, { key })
    expect([status, body.detail, headers.allow]).toEqual([405, `${url} has no ${method}. It has ${allow}.`, allow])
  })

  test('tells OPTIONS its methods', async () => {
    const answer = await chowder.app.inject({ method: 'OPTIONS', url: '/v1/instances' })
    expect([answer.statusCode, answer.headers.allow]).toEqual([204, 'GET, HEAD, OPTIONS, POST'])
  })

  test('also knows them for a method that HTTP clients do not know yet', async () => {
    const answer = await exchange('QUERY /v1/instances HTTP/1.1', 'host: x', 'connection: close', 'content-length: 0')
    expect(answer).toMatchObject({
      status: 405,
      detail: '/v1/instances has no QUERY. It has GET, HEAD, OPTIONS, POST.',
    })
  })
})

test('two Host headers are a 400', async () => {
  const answer = await exchange('GET /healthz HTTP/1.1', 'host: a', 'Host: b', 'connection: close')
  expect(answer).toMatchObject({ status: 400, detail: 'An HTTP/1.1 request must have one Host header.' })
})

describe('a request without a valid key', () => {
  const ours = 'Unknown, revoked or expired API key.'
  test.each([
    [undefined, 'Bearer', 'Send your API key in the header: Authorization: Bearer <key>.'],
    ['Bearer ', 'Bearer', 'Send your API key in the header: Authorization: Bearer <key>.'],
    ['Basic YTpi', 'Bearer', 'Send your API key in the header: Authorization: Bearer <key>.'],
    [`Bearer ${newApiKey('organization')}`, 'Bearer error="invalid_token"', ours],
    [
      'Bearer sk-proj-1',
      'Bearer error="invalid_token"',
      'Unknown API key: the keys of this server begin with chd_org_ or chd_sk_, and client tokens with chd_ct_. Send one of those.',
    ],
  ])('%s is a 401 with a challenge', async (authorization, challenge, detail) => {
    const headers = authorization === undefined ? {} : { authorization }
    const answer = await chowder.call('GET', '/v1/instances', { headers })
    expect([answer.status, answer.headers['www-authenticate'], answer.body.detail]).toEqual([401, challenge, detail])
  })
})

describe('an unknown query parameter is a 422 everywhere', () => {
  test.each([
    ['GET', '/v1/organization', 'this call has none'],
    ['GET', '/v1/instances', 'known: '],
    ['GET', `/v1/instances/7/files`, 'known: `path`'],
    ['POST', `/v1/instances/7/start`, 'this call has none'],
    ['DELETE', `/v1/instances/7`, 'this call has none'],
  ] as const)('%s %s', async (method, url, hint) => {
    const { status, body } = await chowder.call(method, `${url}?utm=1`, { key })
    expect([status, body.detail]).toEqual([
      422,
      [
        {
          loc: ['query', 'utm'],
          msg: expect.stringContaining('is not a known parameter; '),
          type: 'additionalProperties',
        },
      ],
    ])
    expect(body.detail[0].msg).toContain(hint)
  })
})

test('answers are not cached, and not taken for anything else than what they are', async () => {
  const safe = { 'cache-control': 'no-store', 'x-content-type-options': 'nosniff' }
  const signedUp = await chowder.call('POST', '/v1/organization/signup', { body: { name: 'Acme' } })
  expect(signedUp.headers).toMatchObject(safe)
  expect((await chowder.call('GET', '/v1/instances')).headers).toMatchObject(safe)
})

describe('the log', () => {
  const linesOf = (requestId: string) =>
    chowder.logged.map((line) => JSON.parse(line)).filter((line) => line.requestId === requestId)

  test('has the route and the instance of a request, and no name that a client chose', async () => {
    for (const [url, fields] of [
      ['sessions/jane.doe@example.com', { route: '/v1/instances/:instance_id/sessions/:session_id', instanceId: id }],
      ['sessions/jane.doe@example.com/nothing', { path: `/v1/instances/${id}/sessions` }],
    ] as const) {
      const headers = { 'x-request-id': `of-${url}`.replaceAll(/[^a-z-]/g, '-') }
      await chowder.call('GET', `/v1/instances/${id}/${url}`, { key, headers })
      expect(linesOf(headers['x-request-id'])).toMatchObject([{ level: 30, msg: 'request', ...fields }])
    }
    expect(chowder.logged.join('')).not.toContain('jane.doe')
  })

  test('warns of a failure that is no fault of the operator, without a stack', async () => {
    const headers = { 'x-request-id': 'no-billing' }
    const { status } = await chowder.call('POST', '/v1/subscription/portal', { key, headers })
    const lines = linesOf('no-billing')
    expect([status, lines.map(({ level }) => level)]).toEqual([501, [40, 30]])
    expect(lines[0]).toMatchObject({ msg: 'request failed', reason: expect.stringContaining('Billing is not set up') })
    expect(JSON.stringify(lines)).not.toContain('.ts:')
  })
})
