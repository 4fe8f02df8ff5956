import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { checkProviderKey } from '#openclaw/models/provider-key.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { startFakeModelProvider } from '../../support/fake-model-provider.mjs'
import { openTestChowder } from '../../support/test-chowder.ts'

const good = 'sk-ant-canary-good'
const bad = 'sk-ant-canary-bad'

const provider = await startFakeModelProvider({ apiKey: good })
const chowder = await openTestChowder({
  sandboxes: new FakeDriver(),
  providerUrl: provider.url,
  limits: { requestsPerMinute: 1000 },
})
afterAll(async () => {
  await chowder.close()
  await provider.close()
})

const newKey = async () => (await chowder.signUp({ providerKey: null })).key
const patch = (key: string, body: unknown, on = chowder) => on.call('PATCH', '/v1/organization', { key, body })
const providersOf = async (key: string, on = chowder) =>
  (await on.call('GET', '/v1/organization', { key })).body.model_providers
const path = '/v1/organization/model_api_keys/test'

describe('a key that is set with `verify`', () => {
  test('is refused when its provider refuses it, which changes nothing', async () => {
    const key = await newKey()
    const { status, body } = await patch(key, { name: 'Renamed', model_api_keys: { anthropic: bad }, verify: true })
    expect([status, body.error]).toMatchObject([
      400,
      { code: 'provider_key_invalid', param: 'model_api_keys.anthropic' },
    ])
    expect(body.detail).toMatch(/model provider \(anthropic\) refuses the key .* nothing was changed.*invalid api key/)
    expect(await providersOf(key)).toEqual([])
    expect((await chowder.call('GET', '/v1/organization', { key })).body.name).toBe('Acme')
  })

  test('is stored when its provider accepts it, and without `verify` unasked', async () => {
    const key = await newKey()
    expect((await patch(key, { model_api_keys: { anthropic: good, gemini: '' }, verify: true })).status).toBe(200)
    expect((await patch(key, { model_api_keys: { openai: bad } })).status).toBe(200)
    expect(await providersOf(key)).toEqual(['anthropic', 'openai'])
  })

  test('is told from a provider that cannot be reached, which changes nothing', async () => {
    const alone = await openTestChowder({ sandboxes: new FakeDriver() })
    onTestFinished(() => alone.close())
    const { key } = await alone.signUp({ providerKey: null })
    const { status, body } = await patch(key, { model_api_keys: { openai: good }, verify: true }, alone)
    expect([status, body.error]).toMatchObject([502, { code: 'provider_error', param: 'model_api_keys.openai' }])
    expect(await providersOf(key, alone)).toEqual([])
  })
})

describe('POST /v1/organization/model_api_keys/test', () => {
  test('tests the given keys, or the stored ones, and stores nothing', async () => {
    const key = await newKey()
    const results = async (body?: unknown) =>
      (await chowder.call('POST', path, { key, ...(body !== undefined && { body }) })).body.results
    expect(await results({})).toEqual([])
    expect(await results({ model_api_keys: { openai: bad, anthropic: good } })).toEqual([
      { provider: 'anthropic', status: 'ok', message: null },
      { provider: 'openai', status: 'refused', message: 'invalid api key' },
    ])
    expect(await providersOf(key)).toEqual([])
    await patch(key, { model_api_keys: { gemini: bad } })
    expect(await results()).toEqual([{ provider: 'gemini', status: 'refused', message: 'invalid api key' }])
  })

  test('notes when a stored key was set, and when its provider last refused it', async () => {
    const key = await newKey()
    const keys = async () => (await chowder.call('GET', '/v1/organization', { key })).body.model_api_keys
    const since = new Date(Date.now() - 5000).toISOString()
    await patch(key, { model_api_keys: { anthropic: good, openai: bad } })
    const set = await keys()
    expect(set).toEqual({
      anthropic: { set_at: expect.any(String), refused_at: null },
      openai: { set_at: expect.any(String), refused_at: null },
    })
    expect(set.openai.set_at > since).toBe(true)
    await chowder.call('POST', path, { key, body: { model_api_keys: { anthropic: bad } } }) // not the stored one
    expect(await keys()).toEqual(set)
    await chowder.call('POST', path, { key })
    const { anthropic, openai } = await keys()
    expect([anthropic, openai.set_at]).toEqual([set.anthropic, set.openai.set_at])
    expect(openai.refused_at >= openai.set_at).toBe(true)
    await chowder.call('POST', path, { key })
    expect((await keys()).openai).toEqual(openai) // exact to the minute
    await chowder.database.pool.query("UPDATE provider_keys SET refused_at = refused_at - interval '2 minutes'")
    await chowder.call('POST', path, { key })
    expect((await keys()).openai.refused_at > openai.refused_at).toBe(true)
    const refusals = await chowder.call('GET', '/v1/organization/events?type=provider_key.refused', { key })
    expect(refusals.body).toEqual([expect.objectContaining({ subject: 'openai', actor: { type: 'worker', id: null } })])
    await patch(key, { model_api_keys: { openai: good } })
    expect((await keys()).openai).toEqual({ set_at: expect.any(String), refused_at: null })
  })

  test('is limited to 20 a minute for an organization, together with `verify`', async () => {
    const key = await newKey()
    for (let call = 0; call < 20; call += 1) await chowder.call('POST', path, { key, body: {} })
    const { status, body, headers } = await patch(key, { model_api_keys: { anthropic: good }, verify: true })
    expect([status, body.error.code, Number(headers['retry-after'])]).toEqual([429, 'rate_limited', expect.any(Number)])
    expect((await chowder.call('POST', path, { key: await newKey(), body: {} })).status).toBe(200)
  })

  test('no key is in the log', () => {
    expect(chowder.logged.join('')).not.toContain('canary')
  })
})

describe('what a provider says about a key', () => {
  let server: Server
  let url: string
  const asked: string[] = []

  beforeAll(async () => {
    server = createServer(({ url: path, headers }, response) => {
      const key = String(headers['x-api-key'] ?? headers['x-goog-api-key'] ?? headers.authorization)
      asked.push(`${path} ${key}`)
      if (key === 'cut') return void response.destroy()
      if (key === 'moved') return void response.writeHead(302, { location: `${url}/elsewhere` }).end()
      if (key === 'endless') return void response.writeHead(500).write('x'.repeat(1024 * 1024))
      const given = key.replace('Bearer ', '')
      const [status = '200', said] = given.split('!')
      const message = said?.replace('ECHO', given)
      response.writeHead(Number(status)).end(JSON.stringify({ error: { message, details: [message] } }))
    }).listen(0, '127.0.0.1')
    await new Promise((resolve) => server.once('listening', resolve))
    url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  })
  afterAll(() => {
    server.closeAllConnections()
    server.close()
  })

  const check = (key: string, of: 'anthropic' | 'openai' | 'gemini' = 'anthropic') =>
    checkProviderKey(of, url, key, new AbortController().signal)

  test.each([
    ['200', 'anthropic', { status: 'ok', message: null }],
    ['401!invalid x-api-key', 'anthropic', { status: 'refused', message: 'invalid x-api-key' }],
    ['401!You sent ECHO', 'openai', { status: 'refused', message: 'You sent …' }],
    ['400!API_KEY_INVALID', 'gemini', { status: 'refused', message: 'API_KEY_INVALID' }],
    ['400!API_KEY_INVALID', 'anthropic', { status: 'unreachable', message: expect.stringContaining('with 400') }],
    ['403!Missing scopes', 'openai', { status: 'ok', message: 'Missing scopes' }],
    ['429!slow down', 'anthropic', { status: 'ok', message: 'slow down' }],
    [
      '503!sk-ant-secret is down',
      'anthropic',
      { status: 'unreachable', message: 'The provider answered with 503: … is down' },
    ],
    ['cut', 'anthropic', { status: 'unreachable', message: 'The provider cannot be reached.' }],
    ['endless', 'anthropic', { status: 'unreachable', message: expect.stringContaining('with 500') }],
  ] as const)('%s of %s', async (key, of, expected) => {
    expect(await check(key, of)).toEqual(expected)
  })

  test('a redirect is not followed: the key goes to no other place', async () => {
    asked.length = 0
    expect(await check('moved')).toMatchObject({ status: 'unreachable' })
    expect(asked).toEqual(['/v1/models?limit=1 moved'])
  })
})
