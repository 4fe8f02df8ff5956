import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { connect } from 'node:net'
import { afterAll, describe, expect, test } from 'vitest'
import { WebSocket } from 'ws'
import { apiSettings } from '#composition/api.ts'
import { loadConfig } from '#settings/config.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { openTestChowder, type TestChowder } from '../../support/test-chowder.ts'
import { cloneDatabase } from '../../support/test-database.ts'
import { until } from '../../support/until.ts'

const database = await cloneDatabase()
const opened = new Map<string, Promise<TestChowder>>()
afterAll(async () => {
  for (const chowder of opened.values()) await (await chowder).close()
  await database.drop()
})

/** A Chowder that refuses requests as one with these settings does. */
function withSettings(env: NodeJS.ProcessEnv): Promise<TestChowder> {
  const name = JSON.stringify(env)
  const { origins } = apiSettings(loadConfig(env))
  const chowder = opened.get(name) ?? openTestChowder({ sandboxes: new FakeDriver(), database, origins })
  opened.set(name, chowder)
  return chowder
}

/** The status of a call, and the code of its error. */
async function ask(env: NodeJS.ProcessEnv, headers: Record<string, string>, path = '/v1/organization', key?: string) {
  const chowder = await withSettings(env)
  const { status, body } = await chowder.call('GET', path, { headers, ...(key !== undefined && { key }) })
  return [status, body?.error?.code]
}

const loopback = {}
const otherLoopback = { HOST: '127.0.0.2' }
const proxied = { CHOWDER_PUBLIC_URL: 'https://agents.example.com/chowder' }
const anywhere = { HOST: '0.0.0.0' }
const published = { HOST: '0.0.0.0', CHOWDER_PUBLIC_URL: 'https://agents.example.com' }
const listed = { HOST: '10.0.0.7', CHOWDER_ALLOWED_HOSTS: 'API, 10.0.0.8,[fd00::7]' }
const unlimited = { ...published, CHOWDER_ALLOWED_HOSTS: '*' }
const pages = { CORS_ALLOWED_ORIGINS: 'https://app.example.com, http://localhost:3000' }

describe('A5: the host that a request is addressed to', () => {
  const answered = [401, 'missing_api_key']
  const refused = [421, 'unknown_host']
  test.each([
    ['the loopback', loopback, 'localhost:8080', answered],
    ['the loopback', loopback, '127.0.0.1', answered],
    ['the loopback', loopback, '[::1]:8080', answered],
    ['the loopback', loopback, 'LocalHost', answered],
    ['the loopback', loopback, 'evil.example', refused],
    ['the loopback', loopback, 'evil.example:8080', refused],
    ['the loopback', loopback, '127.0.0.1.evil.example', refused],
    ['the loopback', loopback, 'localhost@evil.example', refused],
    ['the loopback', loopback, 'evil.example@localhost', refused],
    ['the loopback', loopback, '127.0.0.2', refused],
    ['the loopback', loopback, '[::2]', refused],
    ['another loopback address', otherLoopback, '127.0.0.2:8080', answered],
    ['the loopback behind a proxy', proxied, 'agents.example.com', answered],
    ['the loopback behind a proxy', proxied, '127.0.0.1:8080', answered],
    ['the loopback behind a proxy', proxied, 'example.com', refused],
    ['all addresses', anywhere, '10.0.0.7:8080', answered],
    ['all addresses', anywhere, 'evil.example', answered],
    ['all addresses with a public URL', published, 'agents.example.com', answered],
    ['all addresses with a public URL', published, 'localhost', answered],
    ['all addresses with a public URL', published, '10.0.0.7', refused],
    ['an address with a list', listed, 'api:8080', answered],
    ['an address with a list', listed, '10.0.0.7:8080', answered],
    ['an address with a list', listed, '10.0.0.8', answered],
    ['an address with a list', listed, '[fd00::7]:8080', answered],
    ['an address with a list', listed, '10.0.0.9', refused],
    ['all addresses and any host', unlimited, 'evil.example', answered],
  ])('on %s, %o: %s', async (_binding, env, host, expected) => {
    expect(await ask(env, { host })).toEqual(expected)
  })

  test('the refusal names the settings, and hides nothing of the rest of the API', async () => {
    const chowder = await withSettings(loopback)
    const { body } = await chowder.call('GET', '/v1/organization', { headers: { host: 'a.example' } })
    expect(body.detail).toContain('"a.example"')
    expect(body.detail).toContain('CHOWDER_ALLOWED_HOSTS')
    expect(body.detail).toContain('CHOWDER_PUBLIC_URL')
    for (const path of ['/docs', '/openapi.json', '/v1/nothing']) {
      expect(await ask(loopback, { host: 'a.example' }, path)).toEqual([421, 'unknown_host'])
    }
  })

  test('probes are answered whatever they say', async () => {
    const headers = { host: '10.0.0.7:8080', origin: 'https://evil.example', 'sec-fetch-site': 'cross-site' }
    // A busy machine may need a moment to be ready.
    for (const path of ['/healthz', '/readyz'])
      await until(`200 of ${path}`, async () => (await ask(loopback, headers, path))[0] === 200)
  })

  test('S5: a page whose name leads here since a moment ago creates no organization', async () => {
    const chowder = await withSettings(loopback)
    await chowder.app.listen({ host: '127.0.0.1', port: 0 })
    const { port } = chowder.app.server.address() as AddressInfo
    const signUp = async (host: string) => {
      const socket = connect(port, '127.0.0.1')
      const body = '{"name": "Rebound"}'
      const head = [
        'POST /v1/organization/signup HTTP/1.1',
        `host: ${host}:${port}`,
        `origin: http://${host}:${port}`,
        ...['sec-fetch-site: same-origin', 'content-type: application/json', 'connection: close'],
        `content-length: ${body.length}`,
      ]
      socket.write(`${head.join('\r\n')}\r\n\r\n${body}`)
      let answer = ''
      socket.on('data', (bytes) => {
        answer += bytes
      })
      await once(socket, 'close')
      return answer.split('\r\n')[0]
    }
    const count = async () =>
      (await chowder.database.pool.query(`SELECT 1 FROM organizations WHERE name = 'Rebound'`)).rowCount
    expect([await signUp('rebound.example'), await count()]).toEqual(['HTTP/1.1 421 Misdirected Request', 0])
    expect([await signUp('localhost'), await count()]).toEqual(['HTTP/1.1 201 Created', 1])
  })
})

describe('A5: the web page that a request comes from', () => {
  const host = 'localhost:8080'
  const evil = 'https://evil.example'
  const foreign = [403, 'foreign_origin']
  const passed = [401, 'missing_api_key']
  const link = { 'sec-fetch-mode': 'navigate', 'sec-fetch-dest': 'document' }

  test.each<[string, NodeJS.ProcessEnv, Record<string, string>, unknown[]]>([
    ['no page: curl, an SDK', loopback, {}, passed],
    ['a page of the server itself', loopback, { origin: 'http://localhost:8080' }, passed],
    ['the address line', loopback, { 'sec-fetch-site': 'none' }, passed],
    ['a page of the server itself, a read', loopback, { 'sec-fetch-site': 'same-origin' }, passed],
    ['a page of the public URL behind a proxy', proxied, { origin: 'https://agents.example.com' }, passed],
    ['a page of another site', loopback, { origin: evil, 'sec-fetch-site': 'cross-site' }, foreign],
    ['a page of another site, an old browser', loopback, { origin: evil }, foreign],
    ['a page of another port', loopback, { origin: 'http://localhost:3000' }, foreign],
    ['a page that hides where it is from', loopback, { origin: 'null' }, foreign],
    ['an image or a script', loopback, { 'sec-fetch-site': 'cross-site', 'sec-fetch-mode': 'no-cors' }, foreign],
    ['an image of another port', loopback, { 'sec-fetch-site': 'same-site', 'sec-fetch-mode': 'no-cors' }, foreign],
    ['a link that a person follows', loopback, { 'sec-fetch-site': 'cross-site', ...link }, passed],
    ['a frame', loopback, { 'sec-fetch-site': 'cross-site', ...link, 'sec-fetch-dest': 'iframe' }, foreign],
    ['a page of another site, no host limited', anywhere, { origin: evil }, foreign],
    ['a page of another site, none of those allowed', pages, { origin: evil }, foreign],
    ['a page of an allowed origin', pages, { origin: 'https://app.example.com' }, passed],
    ['a page of an allowed origin', pages, { origin: 'http://localhost:3000', 'sec-fetch-site': 'same-site' }, passed],
    ['an image on a page of unknown origin', pages, { 'sec-fetch-site': 'cross-site' }, foreign],
  ])('%s', async (_what, env, headers, expected) => {
    expect(await ask(env, { host, ...headers })).toEqual(expected)
  })

  test('S5: a form of another site posts nothing', async () => {
    const chowder = await withSettings(loopback)
    const headers = { host, origin: evil, 'sec-fetch-site': 'cross-site', 'sec-fetch-mode': 'navigate' }
    const answer = await chowder.call('POST', '/v1/organization/signup', { headers, body: { name: 'Form' } })
    expect([answer.status, answer.body.error?.code]).toEqual([403, 'foreign_origin'])
    expect(answer.body.detail).toContain('CORS_ALLOWED_ORIGINS')
  })

  test('a preflight of another site gets no permission', async () => {
    const chowder = await withSettings(pages)
    const headers = { host, origin: evil, 'access-control-request-method': 'POST' }
    const { status, headers: answered } = await chowder.call('OPTIONS', '/v1/instances', { headers })
    expect([status, answered['access-control-allow-origin']]).toEqual([403, undefined])
  })

  test('a WebSocket of another site is refused, and one of no page is not', async () => {
    const chowder = await withSettings(proxied)
    const { key } = await chowder.signUp()
    const { body } = await chowder.call('POST', '/v1/instances', { key, body: { name: 'a' } })
    const url = await chowder.app.listen({ host: '127.0.0.1', port: 0 })
    const upgrade = async (options: { origin?: string; host?: string }) => {
      const headers = { authorization: `Bearer ${key}`, ...(options.host !== undefined && { host: options.host }) }
      const socket = new WebSocket(`${url}/v1/instances/${body.id}/responses`, { ...options, headers })
      const status = await Promise.race([
        once(socket, 'open').then(() => 101),
        once(socket, 'unexpected-response').then(([, { statusCode }]) => statusCode),
      ])
      socket.on('error', () => {}).terminate()
      return status
    }
    expect(await upgrade({})).toBe(101)
    expect(await upgrade({ origin: evil })).toBe(403)
    expect(await upgrade({ host: 'evil.example' })).toBe(421)
  })
})

describe('pages of CORS_ALLOWED_ORIGINS', () => {
  const origin = 'https://app.example.com'
  const page = { host: 'localhost', origin, 'sec-fetch-site': 'cross-site' }

  test('make calls with a scoped key, and may read the answer', async () => {
    const chowder = await withSettings(pages)
    const { key } = await chowder.signUp()
    const { body: instance } = await chowder.call('POST', '/v1/instances', { key, body: { name: 'a' } })
    const grants = { name: 'page', instance_ids: [instance.id], permissions: ['read'] }
    const scoped = (await chowder.call('POST', '/v1/keys', { key, body: grants })).body.raw_key
    const path = `/v1/instances/${instance.id}`
    const allowed = { 'access-control-allow-origin': origin, vary: expect.stringContaining('Origin') }
    const exposed = { 'access-control-expose-headers': expect.stringContaining('x-request-id') }

    const read = await chowder.call('GET', path, { key: scoped, headers: page })
    expect(read).toMatchObject({ status: 200, body: { id: instance.id }, headers: { ...allowed, ...exposed } })
    expect(read.headers).not.toHaveProperty('access-control-allow-credentials')
    const failed = await chowder.call('DELETE', path, { key: scoped, headers: page })
    expect(failed).toMatchObject({ status: 403, body: { error: { code: 'lacks_permission' } }, headers: allowed })
    const asked = {
      ...page,
      'access-control-request-method': 'POST',
      'access-control-request-headers': 'authorization',
    }
    expect(await chowder.call('OPTIONS', `${path}/responses`, { headers: asked })).toMatchObject({
      status: 204,
      headers: {
        ...allowed,
        'access-control-allow-methods': expect.stringContaining('POST'),
        'access-control-allow-headers': 'authorization',
      },
    })

    const refused = await chowder.call('GET', path, { key, headers: page })
    expect(refused).toMatchObject({ status: 403, body: { error: { code: 'lacks_permission' } }, headers: allowed })
    const noPage = await chowder.call('GET', path, { key })
    expect([noPage.status, noPage.headers['access-control-allow-origin']]).toEqual([200, undefined])
  })

  test('read what is public, and do not sign up', async () => {
    const chowder = await withSettings(pages)
    expect((await chowder.call('GET', '/openapi.json', { headers: page })).status).toBe(200)
    const signUp = await chowder.call('POST', '/v1/organization/signup', { headers: page, body: { name: 'Page' } })
    expect([signUp.status, signUp.body.error.code]).toEqual([403, 'lacks_permission'])
  })

  test('OPTIONS that is no preflight says what it says without them', async () => {
    for (const env of [loopback, pages]) {
      const chowder = await withSettings(env)
      const { status, headers } = await chowder.call('OPTIONS', '/v1/instances')
      expect([status, headers.allow]).toEqual([204, 'GET, HEAD, OPTIONS, POST'])
      expect((await chowder.call('OPTIONS', '/v1/nothing')).status).toBe(404)
    }
  })
})
