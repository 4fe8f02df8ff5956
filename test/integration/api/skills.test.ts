import { afterAll, beforeEach, describe, expect, test } from 'vitest'
import { errorBody } from '../../support/error-body.ts'
import { type FakeVerdict, skillMd, startFakeClawHub } from '../../support/fake-clawhub.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { Refusal, startFakeGateway } from '../../support/fake-gateway.ts'
import { addFakeSkills } from '../../support/fake-skills.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

let id: string

type Method = 'GET' | 'POST' | 'PATCH' | 'DELETE'
const call = (method: Method, path: string, body?: unknown, as = key) =>
  chowder.call(method, `/v1/instances${path}`, { key: as, ...(body !== undefined && { body }) })
const skills = (method: Method, path = '', body?: unknown, as?: string) =>
  call(method, `/${id}/skills${path}`, body, as)
const install = (slug: string, fields: Record<string, unknown> = {}) => skills('POST', '/install', { slug, ...fields })
const rows = async () =>
  (await chowder.database.pool.query('SELECT * FROM skills WHERE instance_id = $1 ORDER BY name', [id])).rows
const installs = () => gateway.calls.filter(({ method }) => method === 'skills.install')
const file = (path: string) => driver.file(id, `state/workspace/${path}`)
const publish = (
  slug: string,
  verdict: FakeVerdict = 'clean',
  { owner = 'acme', version = '1.0.0', env = [] as string[] } = {},
) =>
  hub.publish(
    { owner, slug },
    { version, files: { 'SKILL.md': skillMd(slug, { env }), 'run.sh': `echo ${version}` }, verdict },
  )

const hub = await startFakeClawHub()
const gateway = await startFakeGateway({})
const driver = new FakeDriver(() => gateway.endpoint)
addFakeSkills(gateway, hub, () => driver.files(id))
const chowder = await openTestChowder({ sandboxes: driver, clawhubUrl: hub.url })
await chowder.startWorker()
const { key } = await chowder.signUp()
afterAll(async () => {
  await chowder.close()
  await gateway.close()
  await hub.close()
})

beforeEach(async () => {
  gateway.behaviour.onCall = () => {}
  hub.intercept = null
  hub.skills.length = 0
  id = (await call('POST', '', { name: 'x' })).body.id
  await until('the instance to run', async () => (await call('GET', `/${id}`)).body.status === 'running')
  gateway.config = JSON.parse(driver.file(id, 'state/openclaw.json') ?? '{}')
  gateway.calls.length = 0
})

describe('install', () => {
  test('installs the skill into the workspace and pins the version', async () => {
    publish('web-search')
    const { status, body } = await install('@acme/web-search')
    expect([status, body]).toEqual([
      200,
      {
        skill: 'web-search',
        status: 'installed',
        version: '1.0.0',
        output: 'Installed web-search@1.0.0',
        message: 'Skill installed and ready to use.',
      },
    ])
    expect(file('skills/web-search/run.sh')).toBe('echo 1.0.0')
    const info = await skills('GET', '/web-search')
    expect(info.body).toEqual({
      name: 'web-search',
      description: 'The web-search skill.',
      source: 'clawhub',
      ready: true,
      version: '1.0.0',
      path: '/skills/web-search',
      slug: '@acme/web-search',
      digest: expect.stringMatching(/^[0-9a-f]{64}$/),
      enabled: true,
      required_env: [],
      required_programs: [],
      shell_env: [],
    })
  })

  test('lists the missing variables, and sets others, whose values are masked', async () => {
    publish('web-search', 'clean', { env: ['SEARCH_API_KEY', 'REGION'] })
    const secret = 'sk-0123456789abcdef'
    const { body } = await install('@acme/web-search', { env: { SEARCH_API_KEY: secret, SHORT: 'abc' } })
    expect(body).toMatchObject({
      status: 'installed_missing_env',
      env_applied: { SEARCH_API_KEY: '••••cdef', SHORT: '••••' },
      required_env: ['REGION'],
      message: 'Skill installed. To use it, set REGION.',
    })
    expect(gateway.config).toMatchObject({ skills: { entries: { 'web-search': { env: { SEARCH_API_KEY: secret } } } } })
    expect(JSON.stringify(await rows())).not.toContain(secret)
    expect(chowder.logged.join()).not.toContain(secret)
  })

  test('accepts a slug without its owner when only one skill has it', async () => {
    publish('web-search')
    publish('web-search-pro')
    publish('twice', 'clean', { owner: 'acme' })
    publish('twice', 'clean', { owner: 'bob' })
    expect((await install('web-search')).body.skill).toBe('web-search')
    const several = await install('twice')
    expect([several.status, several.body.detail]).toEqual([400, expect.stringContaining('@acme/twice, @bob/twice')])
    const none = await install('nothing')
    expect([none.status, none.body.detail]).toEqual([400, expect.stringContaining('no skill with the slug nothing')])
    expect(installs()).toHaveLength(1)
  })

  test('pins the requested version', async () => {
    publish('web-search')
    publish('web-search', 'pending', { version: '2.0.0' })
    expect((await install('@acme/web-search', { version: '1.0.0' })).body.version).toBe('1.0.0')
    expect(installs()[0]?.params).toMatchObject({ slug: '@acme/web-search', version: '1.0.0' })
    const unknown = await install('@acme/web-search', { version: '9.9.9' })
    expect([unknown.status, unknown.body.detail]).toEqual([400, expect.stringContaining('no version 9.9.9')])
  })

  test.each(['malicious', 'held', 'quarantined', 'revoked'] as const)(
    'A10: a version that is %s is never installed, even with the caller’s consent',
    async (verdict) => {
      publish('web-search', verdict)
      const { status, body } = await install('@acme/web-search', { allow_unverified: true })
      expect([status, body.detail]).toEqual([400, expect.stringContaining('@acme/web-search 1.0.0 is not installed:')])
      expect(installs()).toEqual([])
      expect(await rows()).toEqual([])
    },
  )

  test.each(['suspicious', 'pending'] as const)(
    'A10: a version that is %s needs the caller’s consent',
    async (verdict) => {
      publish('web-search', verdict)
      const { status, body } = await install('@acme/web-search')
      expect([status, body.detail]).toEqual([400, expect.stringContaining('"allow_unverified": true')])
      expect(installs()).toEqual([])
      const consented = await install('@acme/web-search', { allow_unverified: true })
      expect(consented.status).toBe(200)
      expect(await rows()).toMatchObject([{ name: 'web-search', version: '1.0.0' }])
    },
  )

  test('A10: OpenClaw refuses a version without a verdict, even with the caller’s consent', async () => {
    publish('web-search', 'none')
    expect((await install('@acme/web-search')).body.detail).toContain('"allow_unverified": true')
    const { status, body } = await install('@acme/web-search', { allow_unverified: true })
    expect([status, body.detail]).toEqual([400, expect.stringContaining('trust check failed')])
    expect(await rows()).toEqual([])
  })

  test('S28: a skill whose files the registry does not list needs the caller’s consent', async () => {
    publish('web-search')
    hub.intercept = ({ url = '' }, response) => {
      if (url.includes('/versions/')) response.writeHead(404).end()
      return url.includes('/versions/')
    }
    const { status, body } = await install('@acme/web-search')
    expect([status, body.error.code]).toEqual([400, 'skill_unverified'])
    expect(body.detail).toContain('is not installed: the registry does not list its files.')
    expect(installs()).toEqual([])
    expect((await install('@acme/web-search', { allow_unverified: true })).status).toBe(200)
    expect(await rows()).toMatchObject([{ name: 'web-search', version: '1.0.0' }])
  })

  test('A10: a skill whose files differ from the published ones is removed again', async () => {
    const files = { 'SKILL.md': skillMd('web-search'), 'run.sh': 'echo' }
    hub.publish(
      { owner: 'acme', slug: 'web-search' },
      { version: '1.0.0', files, served: { ...files, 'run.sh': 'curl evil' }, verdict: 'clean' },
    )
    const { status, body } = await install('@acme/web-search')
    expect([status, body.detail]).toEqual([
      400,
      expect.stringContaining('its file "run.sh" differs from the published one'),
    ])
    expect(file('skills/web-search/SKILL.md')).toBe(null)
    expect(file('.clawhub/lock.json')).not.toContain('web-search')
    expect(await rows()).toEqual([])
  })

  test.each([
    ['that OpenClaw cannot list', '---\nname:\n---\n', /finds no skill in it/],
    ['that calls itself __proto__', skillMd('__proto__'), /the name that it gives itself/],
    ['that takes the name of another', skillMd('other'), /takes the name of another skill, "other"/],
  ])('a skill %s is removed again', async (_defect, text, reason) => {
    publish('other')
    await install('@acme/other')
    hub.publish({ owner: 'acme', slug: 'bad' }, { version: '1.0.0', files: { 'SKILL.md': text }, verdict: 'clean' })
    const { status, body } = await install('@acme/bad')
    expect([status, body.detail]).toEqual([400, expect.stringMatching(reason)])
    expect(file('skills/bad/SKILL.md')).toBe(null)
    expect(await rows()).toMatchObject([{ name: 'other' }])
  })

  test('the next install checks and stores a release that a crash left without a row', async () => {
    publish('web-search')
    await gateway.methods['skills.install']?.({ slug: '@acme/web-search', version: '1.0.0' })
    expect((await skills('GET')).body).toContainEqual(
      expect.objectContaining({ name: 'web-search', source: 'clawhub' }),
    )
    expect((await install('@acme/web-search')).status).toBe(200)
    expect(await rows()).toMatchObject([{ name: 'web-search', slug: '@acme/web-search', version: '1.0.0' }])
  })

  test('an install with an unknown outcome is a 504, and a second one completes it', async () => {
    publish('web-search')
    const original = gateway.methods['skills.install']
    gateway.methods['skills.install'] = async (params) => {
      await original?.(params)
      gateway.disconnect()
      return {}
    }
    expect((await install('@acme/web-search')).status).toBe(504)
    if (original) gateway.methods['skills.install'] = original
    expect([await rows(), file('skills/web-search/run.sh')]).toEqual([[], 'echo 1.0.0'])
    await until('the worker to finish', async () => (await call('GET', `/${id}`)).body.step === null)
    expect((await install('@acme/web-search')).status).toBe(200)
    expect(await rows()).toMatchObject([{ name: 'web-search', version: '1.0.0' }])
  })

  test('of two concurrent installs one succeeds and the other is a conflict', async () => {
    publish('web-search')
    const answers = await Promise.all([install('@acme/web-search'), install('web-search')])
    expect(answers.map(({ status }) => status).sort()).toEqual([200, 409])
    expect(installs()).toHaveLength(1)
  })

  test('a skill that is installed, one of another publisher, and one of the agent in the same folder are conflicts', async () => {
    publish('web-search')
    publish('web-search', 'clean', { owner: 'bob' })
    publish('notes')
    await install('@acme/web-search')
    await driver
      .files(id)
      .write('state/workspace/skills/notes/SKILL.md', Buffer.from(skillMd('notes')), {}, AbortSignal.timeout(1000))
    const again = await install('@acme/web-search')
    expect([again.status, again.body.detail]).toEqual([409, expect.stringContaining('/skills/web-search/update')])
    const other = await install('@bob/web-search')
    expect([other.status, other.body.detail]).toEqual([409, expect.stringContaining('@acme/web-search is installed')])
    const own = await install('@acme/notes')
    expect([own.status, own.body.detail]).toEqual([409, expect.stringContaining('skills/notes')])
  })

  test.each([
    ['../x'],
    ['@acme/../x'],
    ['@acme/x/y'],
    ['-x'],
    ['x;rm -rf'],
    ['https://evil.test/x'],
    ['skills-sh:a/b/c'],
    ['X'],
    ['x\n'],
    [''],
  ])('A9: the slug %j is refused before any request to the registry', async (slug) => {
    hub.requests.length = 0
    expect((await install(slug)).status).toBe(422)
    expect((await install('@acme/x', { version: '1 --force' })).status).toBe(422)
    expect(hub.requests).toEqual([])
  })

  test.each(['PATH', 'LD_PRELOAD', 'node_options', 'OPENCLAW_STATE_DIR', 'HTTPS_PROXY', 'A=B', '1A', ''])(
    'A9: the variable %j cannot be set',
    async (name) => {
      publish('web-search')
      const { status, body } = await install('@acme/web-search', { env: { [name]: 'x' } })
      expect([status, body.detail]).toEqual([400, expect.stringContaining('env: ')])
      expect(installs()).toEqual([])
      expect((await skills('PATCH', '/weather', { env: { [name]: 'x' } })).status).toBe(400)
    },
  )

  test('a failure of the registry is a 502 that names it', async () => {
    hub.intercept = (_request, response) => response.writeHead(500).end() && true
    for (const failed of [
      await install('web-search'),
      await install('@acme/web-search'),
      await skills('GET', '/search?q=x'),
    ]) {
      const detail = { error: 'The skill registry answered with status 500. Try again later.' }
      expect([failed.status, failed.body]).toEqual([502, errorBody('skill_registry_unreachable', detail)])
    }
  })

  test('a failure of the installer is a 400 with its message, without paths of the host', async () => {
    publish('web-search')
    gateway.behaviour.onCall = (method) => {
      if (method !== 'skills.install') return
      throw new Refusal({ code: 'UNAVAILABLE', message: 'cannot write /var/lib/x/state/workspace/skills/y' })
    }
    const { status, body } = await install('@acme/web-search')
    expect([status, body.detail]).toEqual([400, 'OpenClaw did not install @acme/web-search: cannot write skills/y'])
    expect((await call('GET', `/${id}`)).body).toMatchObject({ status: 'running', step: null })
  })

  test('A13: what the installer says holds no secret of the agent', async () => {
    const secret = 'value-of-a-skill-variable-1'
    publish('web-search')
    expect((await install('@acme/web-search', { env: { WEB_KEY: secret } })).status).toBe(200)
    publish('other')
    gateway.behaviour.onCall = (method) => {
      if (method !== 'skills.install') return
      throw new Refusal({ code: 'UNAVAILABLE', message: `cannot send ${secret} or ${btoa(secret)}` })
    }
    const { status, body } = await install('@acme/other')
    expect([status, body.detail]).toEqual([400, 'OpenClaw did not install @acme/other: cannot send *** or ***'])
  })
})

describe('list and read', () => {
  test('include OpenClaw’s own skills; eligible_only lists the ready ones; the Link header leads through the pages', async () => {
    publish('alpha', 'clean', { env: ['KEY_OF_ALPHA'] })
    publish('beta')
    await install('@acme/alpha')
    await install('@acme/beta')
    const names = async (query: string) => (await skills('GET', query)).body.map(({ name }: { name: string }) => name)
    expect(await names('')).toEqual(['alpha', 'beta', 'weather'])
    expect(await names('?eligible_only=true')).toEqual(['beta', 'weather'])
    const page = await skills('GET', '?limit=2')
    const next = /<http:\/\/chowder\.test(.+)>; rel="next"/.exec(String(page.headers.link))?.[1]
    expect(page.body).toHaveLength(2)
    expect((await chowder.call('GET', String(next), { key })).body).toMatchObject([
      { name: 'weather', source: 'openclaw' },
    ])
  })

  test('an unknown skill, and the skills of another organization, are a 404', async () => {
    const other = (await chowder.signUp()).key
    expect((await skills('GET', '/nothing')).body).toEqual(errorBody('not_found', 'Skill not found.'))
    for (const [method, path] of [
      ['GET', ''],
      ['GET', '/weather'],
      ['GET', '/search?q=x'],
      ['DELETE', '/weather'],
    ] as const) {
      const { status, body } = await skills(method, path, undefined, other)
      expect([status, body]).toEqual([404, errorBody('instance_not_found', 'Instance not found.')])
    }
    expect((await skills('PATCH', '/weather', {}, other)).status).toBe(404)
    expect((await skills('POST', '/install', { slug: 'x' }, other)).status).toBe(404)
  })

  test('search returns skills of the registry', async () => {
    publish('web-search')
    expect((await skills('GET', '/search?q=web')).body).toEqual([
      { slug: '@acme/web-search', name: 'web-search', description: '', version: '1.0.0' },
    ])
    expect((await skills('GET', '/search')).status).toBe(422)
  })
})

describe('configure', () => {
  test('merges by key, null removes a key, and the skill is ready at once', async () => {
    publish('web-search', 'clean', { env: ['SEARCH_API_KEY'] })
    await install('@acme/web-search', { env: { OTHER: 'value' } })
    expect((await skills('GET', '/web-search')).body).toMatchObject({ ready: false, required_env: ['SEARCH_API_KEY'] })
    const patch = { env: { SEARCH_API_KEY: 'sk-new' }, config: { max_results: 5, nested: { a: 1, b: 2 } } }
    expect((await skills('PATCH', '/web-search', patch)).status).toBe(204)
    expect((await skills('GET', '/web-search')).body).toMatchObject({ ready: true, required_env: [] })
    const next = { enabled: false, env: { OTHER: null }, config: { nested: { a: null } } }
    expect((await skills('PATCH', '/web-search', next)).status).toBe(204)
    expect(gateway.config).toMatchObject({
      skills: {
        entries: {
          'web-search': {
            enabled: false,
            env: { SEARCH_API_KEY: 'sk-new' },
            config: { max_results: 5, nested: { b: 2 } },
          },
        },
      },
    })
    expect((await skills('GET', '/web-search')).body).toMatchObject({ ready: false, enabled: false })
  })

  test('also configures OpenClaw’s own skills', async () => {
    expect((await skills('PATCH', '/weather', { apiKey: 'a-key-of-the-weather' })).status).toBe(204)
    expect(gateway.config).toMatchObject({ skills: { entries: { weather: { apiKey: 'a-key-of-the-weather' } } } })
    expect((await skills('PATCH', '/weather', { apiKey: null })).status).toBe(204)
    expect(gateway.config).not.toHaveProperty('skills')
  })

  test('names the variables that the shell of a second room has, of those that are set', async () => {
    const lacking = await skills('PATCH', '/weather', { shell_env: ['FORECAST_KEY'] })
    expect([lacking.status, lacking.body.error]).toEqual([
      400,
      expect.objectContaining({ code: 'invalid_value', message: expect.stringContaining('"FORECAST_KEY"') }),
    ])
    expect(await rows()).toEqual([])
    const env = { FORECAST_KEY: 'a-key-of-the-forecast', OTHER: 'value' }
    expect((await skills('PATCH', '/weather', { env, shell_env: ['FORECAST_KEY'] })).status).toBe(204)
    expect((await skills('GET', '/weather')).body.shell_env).toEqual(['FORECAST_KEY'])
    // OpenClaw knows no such key, and with one room commands have all variables.
    expect(gateway.config).toMatchObject({ skills: { entries: { weather: { env } } } })
    expect(JSON.stringify(gateway.config)).not.toMatch(/shell_env|"sandbox"/)
    expect(
      (await skills('PATCH', '/weather', { shell_env: [], env: { FORECAST_KEY: null, OTHER: null } })).status,
    ).toBe(204)
    expect(await rows()).toEqual([])
  })

  test('settings that the gateway refuses stay as they were', async () => {
    await skills('PATCH', '/weather', { config: { a: 1 } })
    gateway.behaviour.onCall = (method) => {
      if (method === 'config.patch') throw new Refusal({ code: 'INVALID_REQUEST', message: 'invalid config: no' })
    }
    const { status, body } = await skills('PATCH', '/weather', { config: { a: 2 } })
    expect([status, body.detail]).toEqual([400, expect.stringContaining('invalid config: no')])
    gateway.behaviour.onCall = () => {}
    await skills('PATCH', '/weather', { enabled: true })
    expect(gateway.config).toMatchObject({ skills: { entries: { weather: { config: { a: 1 }, enabled: true } } } })
  })

  test('unsafe keys and too large settings are refused', async () => {
    for (const config of [{ $include: '/etc/passwd' }, { a: [{ constructor: 1 }] }]) {
      expect((await skills('PATCH', '/weather', { config })).status).toBe(400)
    }
    const large = await skills('PATCH', '/weather', { config: { text: 'x'.repeat(200_000) } })
    expect([large.status, large.body.detail]).toEqual([400, expect.stringContaining('128 KiB')])
    expect((await skills('PATCH', '/nothing', { enabled: true })).status).toBe(404)
    expect((await skills('PATCH', '/weather', { api_key: 'x' })).status).toBe(422)
    expect(await rows()).toEqual([])
  })
})

test.each(['running', 'stopped'])('T4: the settings of a %s instance have one bound together', async (state) => {
  for (const name of ['one', 'two', 'three']) {
    publish(name)
    await install(`@acme/${name}`)
  }
  if (state === 'stopped') await call('POST', `/${id}/stop`)
  const large = { config: { text: 'x'.repeat(110_000) } }
  expect((await skills('PATCH', '/one', large)).status).toBe(204)
  expect((await skills('PATCH', '/two', large)).status).toBe(204)
  const { status, body } = await skills('PATCH', '/three', large)
  expect([status, body.detail]).toEqual([400, expect.stringContaining('256 KiB')])
  expect((await rows()).find(({ name }) => name === 'three')).toMatchObject({ sealed_settings: null })
  if (state === 'stopped') await call('POST', `/${id}/start`)
  await until('the stored configuration', async () => {
    const isRunning = (await call('GET', `/${id}`)).body.status === 'running'
    if (isRunning && state === 'stopped') gateway.config = JSON.parse(driver.file(id, 'state/openclaw.json') ?? '{}')
    const { entries = {} } = (gateway.config as { skills?: { entries?: Record<string, unknown> } }).skills ?? {}
    return isRunning && Object.keys(entries).join() === 'one,two'
  })
  expect((await skills('PATCH', '/one', { config: { text: null } })).status).toBe(204)
  expect((await skills('PATCH', '/three', large)).status).toBe(204)
})

describe('a stopped instance', () => {
  test('lists its installed skills, stores settings for its next start, and refuses other changes', async () => {
    publish('web-search', 'clean', { env: ['SEARCH_API_KEY'] })
    await install('@acme/web-search')
    await call('POST', `/${id}/stop`)
    expect((await skills('GET')).body).toEqual([
      { name: 'web-search', description: '', source: 'clawhub', ready: false, version: '1.0.0' },
    ])
    expect((await skills('PATCH', '/web-search', { env: { SEARCH_API_KEY: 'sk-1' }, enabled: false })).status).toBe(204)
    expect((await skills('GET', '/web-search')).body).toMatchObject({ enabled: false, path: null })
    for (const refused of [
      await skills('GET', '/github'),
      await skills('PATCH', '/github', { enabled: false }),
      await install('@acme/web-search'),
      await skills('POST', '/web-search/update'),
      await skills('DELETE', '/web-search'),
    ]) {
      expect([refused.status, refused.body.detail]).toEqual([
        409,
        'The instance is stopped, not running. Start it first.',
      ])
    }
    await call('POST', `/${id}/start`)
    expect(JSON.parse(driver.file(id, 'state/openclaw.json') ?? '{}').skills).toEqual({
      entries: { 'web-search': { env: { SEARCH_API_KEY: 'sk-1' }, enabled: false } },
    })
  })
})

describe('concurrent changes', () => {
  const merged = { env: { A: '1', B: '2', C: '3', D: '4' } }
  const patches = Object.entries(merged.env).map(([name, value]) => ({ env: { [name]: value } }))

  test.each(['running', 'stopped'])('of one skill of a %s instance all take effect', async (state) => {
    publish('web-search')
    await install('@acme/web-search')
    if (state === 'stopped') await call('POST', `/${id}/stop`)
    const answers = await Promise.all(patches.map((patch) => skills('PATCH', '/web-search', patch)))
    expect(answers.map(({ status }) => status)).toEqual([204, 204, 204, 204])
    if (state === 'stopped') await call('POST', `/${id}/start`)
    const config = state === 'running' ? gateway.config : JSON.parse(driver.file(id, 'state/openclaw.json') ?? '{}')
    expect(config.skills).toEqual({ entries: { 'web-search': merged } })
  })
})

describe('update', () => {
  test('replaces the skill by the latest version and keeps the settings', async () => {
    publish('web-search', 'clean', { env: ['SEARCH_API_KEY'] })
    await install('@acme/web-search', { env: { SEARCH_API_KEY: 'sk-1' } })
    const before = await rows()
    expect((await skills('POST', '/web-search/update')).body).toMatchObject({
      output: 'web-search already has version 1.0.0.',
    })
    expect(installs()).toHaveLength(1)
    publish('web-search', 'clean', { version: '1.1.0', env: ['SEARCH_API_KEY'] })
    const { status, body } = await skills('POST', '/web-search/update', {})
    expect([status, body.version, body.status]).toEqual([200, '1.1.0', 'installed'])
    expect(file('skills/web-search/run.sh')).toBe('echo 1.1.0')
    const [after] = await rows()
    expect([
      after.version,
      after.digest === before[0].digest,
      after.sealed_settings === before[0].sealed_settings,
    ]).toEqual(['1.1.0', false, true])
  })

  test('a refused verdict leaves the installed version as it is', async () => {
    publish('web-search')
    await install('@acme/web-search')
    publish('web-search', 'malicious', { version: '2.0.0' })
    expect((await skills('POST', '/web-search/update', { allow_unverified: true })).status).toBe(400)
    publish('web-search', 'pending', { version: '3.0.0' })
    expect((await skills('POST', '/web-search/update')).status).toBe(400)
    expect(file('skills/web-search/run.sh')).toBe('echo 1.0.0')
    expect((await skills('POST', '/web-search/update', { allow_unverified: true })).body.version).toBe('3.0.0')
    expect((await skills('POST', '/weather/update')).status).toBe(400)
  })
})

describe('uninstall', () => {
  test('removes the files and the settings of the skill only', async () => {
    publish('web-search', 'clean', { env: ['SEARCH_API_KEY'] })
    publish('notes')
    await install('@acme/notes', { env: { NOTES_FOLDER: '/x' } })
    await install('@acme/web-search', { env: { SEARCH_API_KEY: 'sk-1' } })
    expect((await skills('DELETE', '/web-search')).status).toBe(204)
    expect([file('skills/web-search/SKILL.md'), file('skills/notes/SKILL.md')]).toEqual([null, expect.any(String)])
    expect(Object.keys(JSON.parse(file('.clawhub/lock.json') ?? '{}').skills)).toEqual(['notes'])
    expect(gateway.config.skills).toEqual({ entries: { notes: { env: { NOTES_FOLDER: '/x' } } } })
    expect(await rows()).toMatchObject([{ name: 'notes' }])
    expect((await skills('DELETE', '/web-search')).status).toBe(404)
    expect((await install('@acme/web-search')).body.status).toBe('installed_missing_env')
  })

  test('of a skill whose files the agent has deleted leaves nothing behind', async () => {
    publish('web-search')
    await install('@acme/web-search')
    await driver.files(id).remove('state/workspace/skills/web-search', { recursive: true }, AbortSignal.timeout(1000))
    expect((await skills('GET', '/web-search')).body).toMatchObject({ ready: false, path: null })
    expect((await skills('DELETE', '/web-search')).status).toBe(204)
    expect(await rows()).toEqual([])
  })

  test('OpenClaw’s own skills cannot be uninstalled', async () => {
    await skills('PATCH', '/weather', { enabled: false })
    const { status, body } = await skills('DELETE', '/weather')
    expect([status, body.detail]).toEqual([400, expect.stringContaining('"enabled": false')])
    expect(await rows()).toMatchObject([{ name: 'weather' }])
  })
})
