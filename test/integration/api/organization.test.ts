import { afterAll, describe, expect, onTestFinished, test, vi } from 'vitest'
import { newApiKey } from '#http/api-key.ts'
import { newSecret } from '../../support/canary/secrets.ts'
import { errorBody } from '../../support/error-body.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { openTestChowder } from '../../support/test-chowder.ts'

const chowder = await openTestChowder({ sandboxes: new FakeDriver(), defaultTier: 'shrimp' })
afterAll(() => chowder.close())

const timestamp = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00$/

describe('POST /v1/organization/signup', () => {
  test('answers 201 with the documented organization and a key that is shown once', async () => {
    const { status, body, headers } = await chowder.call('POST', '/v1/organization/signup', { body: { name: 'Acme' } })
    expect(status).toBe(201)
    expect(body).toEqual({
      organization: {
        id: expect.stringMatching(/^[0-9a-f-]{36}$/),
        name: 'Acme',
        model_providers: [],
        model_api_keys: {},
        subscription_tier: 'shrimp',
        instance_limit: 1,
        instance_count: 0,
        resources: { memory_mb: 2048, cpus: 2, pids: 512, disk_mb: 10_240 },
        max_resources: { memory_mb: 8192, cpus: 8, pids: 2048, disk_mb: 40_960 },
        isolation: 'one_room',
        egress: null,
        budgets: [],
        created_at: expect.stringMatching(timestamp),
        updated_at: expect.stringMatching(timestamp),
      },
      api_key: expect.stringMatching(/^chd_org_[0-9a-f]{72}$/),
    })
    expect(headers['x-request-id']).toBeTruthy()
    const { rows } = await chowder.database.pool.query('SELECT * FROM api_keys')
    expect(JSON.stringify(rows)).not.toContain(body.api_key)
  })

  test.each([
    ['missing', {}, ['body', 'name']],
    ['empty', { name: '' }, ['body', 'name']],
    ['longer than 128 code points', { name: '🦞'.repeat(129) }, ['body', 'name']],
    ['with a control character', { name: 'a\nb' }, ['body', 'name']],
    ['a number: nothing is coerced', { name: 7 }, ['body', 'name']],
    ['beside an unknown field', { name: 'Acme', tier: 'whale' }, ['body', 'tier']],
  ])('a name that is %s is a 422 that says where', async (_what, body, loc) => {
    const answer = await chowder.call('POST', '/v1/organization/signup', { body })
    expect(answer.status).toBe(422)
    expect(answer.body.detail[0]).toEqual({ loc, msg: expect.any(String), type: expect.any(String) })
    expect(answer.body.error).toMatchObject({ code: 'validation_failed', param: loc[1] })
  })

  test('a 422 about more than one field names none of them in `param`', async () => {
    const { body } = await chowder.call('POST', '/v1/organization/signup', { body: { name: '', tier: 'whale' } })
    expect([body.detail.length, body.error.param]).toEqual([2, null])
    expect(body.error.message).toMatch(/body\.\w+ .*; body\.\w+ /)
  })

  test('is not touched by a change that changes nothing', async () => {
    const { key } = await chowder.signUp()
    const read = async () => (await chowder.call('GET', '/v1/organization', { key })).body
    const before = await read()
    for (const body of [{}, { name: before.name }, { model_api_keys: { openai: null } }]) {
      expect((await chowder.call('PATCH', '/v1/organization', { key, body })).body).toEqual(before)
    }
    await chowder.call('PATCH', '/v1/organization', { key, body: { model_api_keys: { openai: 'sk-other' } } })
    const { updated_at, model_providers } = await read()
    expect(updated_at > before.updated_at).toBe(true)
    expect(model_providers).toContain('openai')
    await chowder.call('PATCH', '/v1/organization', { key, body: { model_api_keys: { openai: null } } })
    expect((await read()).model_providers).not.toContain('openai')
  })

  test('a name of 128 code points is stored unchanged, with its spaces', async () => {
    const name = ` ${'🦞'.repeat(126)} `
    const { status, body } = await chowder.call('POST', '/v1/organization/signup', { body: { name } })
    expect([status, body.organization.name]).toEqual([201, name])
  })

  test('malformed JSON is 400, another content type 415, a body over 1 MiB 413, each with a detail', async () => {
    const send = (payload: string, type = 'application/json') =>
      chowder.app.inject({ method: 'POST', url: '/v1/organization/signup', payload, headers: { 'content-type': type } })
    const answers = await Promise.all([
      send('{"name":'),
      send('{"__proto__": {"name": "x"}}'),
      send('name=Acme', 'application/x-www-form-urlencoded'),
      send(`{"name": "${'a'.repeat(1024 * 1024)}"}`),
    ])
    expect(answers.map((answer) => answer.statusCode)).toEqual([400, 400, 415, 413])
    for (const answer of answers) expect(answer.json().detail).toEqual(expect.any(String))
  })
})

describe('GET /v1/organization', () => {
  test('returns the organization of the key', async () => {
    const { id, key } = await chowder.signUp({ providerKey: null })
    const { status, body } = await chowder.call('GET', '/v1/organization', { key })
    expect([status, body.id]).toEqual([200, id])
  })

  test.each([
    ['no header', {}],
    ['another scheme', { authorization: 'Basic abc' }],
    ['no key after the scheme', { authorization: 'Bearer ' }],
    ['a key of another form', { authorization: 'Bearer sk-123' }],
    ['an unknown key', { authorization: `Bearer ${newApiKey('organization')}` }],
  ])('%s is a 401 with a detail', async (_what, headers) => {
    const { status, body } = await chowder.call('GET', '/v1/organization', { headers })
    expect([status, typeof body.detail]).toEqual([401, 'string'])
  })

  test('the scheme can be written in any case', async () => {
    const { key } = await chowder.signUp({ providerKey: null })
    const { status } = await chowder.call('GET', '/v1/organization', { headers: { authorization: `bEARER ${key}` } })
    expect(status).toBe(200)
  })
})

describe('PATCH /v1/organization', () => {
  test('merges provider keys, returns only their names, and an empty key removes one', async () => {
    const { key } = await chowder.signUp({ providerKey: null })
    const patch = async (body: unknown) => (await chowder.call('PATCH', '/v1/organization', { key, body })).body
    const first = await patch({ name: 'Renamed', model_api_keys: { openai: 'sk-openai-canary', anthropic: 'sk-ant' } })
    expect([first.name, first.model_providers]).toEqual(['Renamed', ['anthropic', 'openai']])
    expect(JSON.stringify(first)).not.toContain('canary')
    expect((await patch({ model_api_keys: { gemini: 'g' } })).model_providers).toEqual([
      'anthropic',
      'openai',
      'gemini',
    ])
    expect((await patch({ model_api_keys: { anthropic: '' } })).model_providers).toEqual(['openai', 'gemini'])
    expect((await patch({ model_api_keys: { gemini: null } })).model_providers).toEqual(['openai'])
    const { rows } = await chowder.database.pool.query('SELECT sealed_key FROM provider_keys')
    expect(JSON.stringify(rows)).not.toContain('canary')
    expect(chowder.logged.join('')).not.toContain('canary')
  })

  test.each([
    ['an unknown provider', { model_api_keys: { mistral: 'x' } }],
    ['a key with a line break', { model_api_keys: { openai: 'a\nb' } }],
    ['a key in quotes', { model_api_keys: { openai: '"sk-1"' } }],
    ['an unknown field', { subscription_tier: 'whale' }],
    ['a read-only field', { id: 'x' }],
    ['an empty name', { name: '' }],
  ])('%s is a 422 and changes nothing', async (_what, body) => {
    const { key } = await chowder.signUp()
    const before = (await chowder.call('GET', '/v1/organization', { key })).body
    const { status } = await chowder.call('PATCH', '/v1/organization', { key, body: { ...body } })
    expect(status).toBe(422)
    expect((await chowder.call('GET', '/v1/organization', { key })).body).toEqual(before)
  })

  test('without a key it is a 401', async () => {
    expect((await chowder.call('PATCH', '/v1/organization', { body: {} })).status).toBe(401)
  })

  test('a changed key raises the generation only of running instances of that provider, an unchanged key of none', async () => {
    const unchanged = newSecret('provider key', 'sk-')
    const { id, key } = await chowder.signUp({ providerKey: unchanged })
    await chowder.database.pool.query(`UPDATE organizations SET instance_limit = NULL WHERE id = '${id}'`)
    const create = async (name: string) =>
      (await chowder.call('POST', '/v1/instances', { key, body: { name } })).body.id
    const [running, stopped, givenUp] = [await create('running'), await create('stopped'), await create('given up')]
    const { pool } = chowder.database
    await pool.query(`UPDATE instances SET observed_generation = 1, ready_at = now() WHERE id = $1`, [running])
    await pool.query(`UPDATE instances SET observed_generation = 1, desired_state = 'stopped' WHERE id = $1`, [stopped])
    await pool.query(`UPDATE instances SET observed_generation = 1 WHERE id = $1`, [givenUp])
    const setKey = (value: string) =>
      chowder.call('PATCH', '/v1/organization', { key, body: { model_api_keys: { anthropic: value } } })
    const generations = async () => {
      const { rows } = await pool.query('SELECT id, generation FROM instances')
      return [running, stopped, givenUp].map((id) => rows.find((row) => row.id === id).generation)
    }
    await setKey(unchanged)
    expect(await generations()).toEqual([1, 1, 1])
    await setKey('sk-other')
    expect(await generations()).toEqual([2, 1, 1])
    await setKey('')
    expect(await generations()).toEqual([3, 1, 1])
  })

  test('R10: a changed key of very many agents makes each due once', async () => {
    const { id, key } = await chowder.signUp()
    const { pool } = chowder.database
    await pool.query(
      `INSERT INTO instances (id, organization_id, name, model_provider, sandbox_driver, openclaw_version, sealed_token,
                              desired_state, observed_generation, ready_at)
       SELECT gen_random_uuid(), $1, 'one of many', 'anthropic', 'of another worker', 'v1', 'x', 'running', 1, now()
       FROM generate_series(1, 2300)`,
      [id],
    )
    const setKey = (anthropic: string) =>
      chowder.call('PATCH', '/v1/organization', { key, body: { model_api_keys: { anthropic } } })
    /** How many instances have each generation. */
    const generations = async () => {
      const { rows } = await pool.query(
        `SELECT json_object_agg(generation, count) AS counts
         FROM (SELECT generation, count(*) FROM instances WHERE organization_id = $1 GROUP BY 1) AS counted`,
        [id],
      )
      return rows[0].counts
    }
    expect((await setKey('sk-second')).status).toBe(200)
    expect(await generations()).toEqual({ 2: 2300 })
    expect((await setKey('sk-second')).status).toBe(200)
    expect(await generations()).toEqual({ 2: 2300 })
  })
})

describe('other routes', () => {
  test('an unknown route is a 404 with a detail', async () => {
    const { status, body } = await chowder.call('GET', '/v1/nothing?secret=1')
    expect([status, body]).toEqual([404, errorBody('unknown_route', 'No route GET /v1/nothing. GET /docs lists all.')])
  })

  test('healthz answers while the process runs, readyz checks its services', async () => {
    expect((await chowder.call('GET', '/healthz')).body).toEqual({ status: 'ok' })
    const { status, body } = await chowder.call('GET', '/readyz')
    expect(status).toBe(200)
    expect(body).toEqual({
      status: 'ready',
      checks: { database: true, queue: true, disk: true },
      workers: 0,
      isolation: 'Nothing runs.',
      version: expect.stringMatching(/^\d+\.\d+\.\d+$/),
      commit: expect.stringMatching(/^([0-9a-f]{12}|unknown)$/),
    })
  })

  test('S20: readyz asks its services twice a second at most, however often it is asked', async () => {
    const ping = vi.spyOn(chowder.queue, 'ping')
    onTestFinished(() => ping.mockRestore())
    const startedAt = performance.now()
    for (let i = 0; i < 20; i += 1) {
      const answers = await Promise.all(Array.from({ length: 20 }, () => chowder.call('GET', '/readyz')))
      expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([200]))
    }
    const halfSeconds = (performance.now() - startedAt) / 500
    expect(ping.mock.calls.length).toBeLessThanOrEqual(Math.ceil(halfSeconds) + 1)
  })

  test('S20: a sign-up has 64 KiB at most', async () => {
    const { status, body } = await chowder.call('POST', '/v1/organization/signup', {
      body: { name: 'Acme', more: Array(8192).fill(1234567) },
    })
    expect([status, body.error.code]).toEqual([413, 'too_large'])
  })
})
