import { execFile } from 'node:child_process'
import { mkdtempDisposable, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { describe, expect, test } from 'vitest'
import { type ConfigInputs, mergeForFile, renderConfig } from '#openclaw/config/config.ts'
import { isApplied, patchFor } from '#openclaw/config/config-patch.ts'
import { gatewayCommand, gatewayEnv } from '#openclaw/inside/launch.ts'
import { listedModels } from '#openclaw/models/models.ts'

const inputs: ConfigInputs = {
  release: 'v1',
  provider: 'anthropic',
  baseUrl: 'http://relay:1',
  secretsFile: '/h/state/secrets.json',
  port: 18789,
  channels: [],
  skills: {},
  overrides: {},
}

describe('renderConfig', () => {
  test.each([
    ['ask', 'ask'],
    ['off', 'deny'],
  ] as const)('approvals %s have the last word over overrides that are stored', (approvals, mode) => {
    const overrides = { tools: { exec: { mode: 'full', host: 'node' }, elevated: { enabled: true } } }
    const { tools } = renderConfig({ ...inputs, approvals, overrides })
    expect(tools).toMatchObject({ exec: { host: 'gateway', mode }, elevated: { enabled: false } })
    expect(renderConfig({ ...inputs, overrides }).tools).toMatchObject(overrides.tools)
  })

  test('the shell of a second room has the variables that skills in use name for it, and no others', () => {
    const skills = {
      one: { env: { GIVEN: 'given', KEPT: 'kept' }, shell_env: ['GIVEN', 'ABSENT'] },
      off: { enabled: false, env: { OFF: 'off' }, shell_env: ['OFF'] },
      none: { env: { OTHER: 'other' } },
    }
    const room = { ssh: '/ssh', root: '/room', workspace: '/workspace' }
    const { agents, skills: rendered } = renderConfig({ ...inputs, skills, room })
    expect(agents).toMatchObject({ defaults: { sandbox: { docker: { env: { GIVEN: 'given' } } } } })
    expect(agents).not.toHaveProperty('defaults.sandbox.docker.env.KEPT')
    expect(agents).not.toHaveProperty('defaults.sandbox.docker.env.OFF')
    expect(rendered).toEqual({
      entries: { one: { env: skills.one.env }, off: { enabled: false, env: skills.off.env }, none: skills.none },
    })
    expect(renderConfig({ ...inputs, skills }).agents).not.toHaveProperty('defaults.sandbox')
  })

  test.each([
    ['anthropic', 'http://fake:1', 'anthropic', 'anthropic-messages', 'http://fake:1'],
    ['openai', 'http://fake:1', 'openai', 'openai-responses', 'http://fake:1/v1'],
    ['gemini', 'http://fake:1', 'google', 'google-generative-ai', 'http://fake:1/v1beta'],
  ] as const)('%s at %s gets its wire format and path', (provider, baseUrl, id, api, url) => {
    const config = renderConfig({ ...inputs, provider, baseUrl })
    expect(config.models).toMatchObject({ providers: { [id]: { api, baseUrl: url } } })
    expect(config.plugins).toMatchObject({ allow: [id] })
    expect(config.agents).toMatchObject({
      defaults: { model: { primary: expect.stringMatching(`^${id}/[a-z]`) }, utilityModel: '' },
    })
  })

  test('old sessions are left alone, unless the overrides say otherwise', () => {
    const sessionWith = (session: object) => renderConfig({ ...inputs, overrides: { session } }).session
    expect(sessionWith({ scope: 'global' })).toMatchObject({ scope: 'global', maintenance: { mode: 'warn' } })
    const own = { maintenance: { pruneAfter: '7d' } }
    expect(sessionWith(own)).toEqual({ dmScope: 'per-channel-peer', ...own })
  })

  test('models may call a client’s tools by name', () => {
    expect(renderConfig(inputs).tools).toEqual({ toolSearch: false, codeMode: false })
  })

  test('OpenAI gets the key of its prompt cache, as it does without a relay', () => {
    const { models } = renderConfig({ ...inputs, provider: 'openai' })
    const { openai } = (models as { providers: { openai: { models: object[] } } }).providers
    for (const entry of openai.models) expect(entry).toMatchObject({ compat: { supportsPromptCacheKey: true } })
  })

  test('Anthropic gets the headers of its beta features, as it does without a relay', () => {
    const { models } = renderConfig(inputs)
    expect(models).toMatchObject({
      providers: { anthropic: { headers: { 'anthropic-beta': expect.stringContaining('interleaved-thinking-') } } },
    })
  })

  test('every model has an entry of its own: those of the table, of turns, and of overrides', () => {
    const overrides = {
      agents: { defaults: { model: { primary: 'claude-own', fallbacks: ['anthropic/claude-two'] } } },
    }
    const { models, agents } = renderConfig({ ...inputs, unlistedModels: ['claude-new'], overrides })
    const { anthropic } = (models as { providers: { anthropic: { models: { id: string }[] } } }).providers
    const listed = listedModels('v1', 'anthropic').map(({ id }) => id)
    expect(anthropic.models.map(({ id }) => id)).toEqual([...listed, 'claude-new', 'claude-own', 'claude-two'])
    const entry = { input: ['text', 'image'], reasoning: false, contextWindow: 200_000, maxTokens: 32_000 }
    expect(anthropic.models.at(-1)).toEqual({ id: 'claude-two', name: 'claude-two', ...entry })
    expect(anthropic.models).toContainEqual({
      ...entry,
      id: 'claude-sonnet-4-20250514',
      name: 'Claude Sonnet 4',
      maxTokens: 64_000,
    })
    // OpenClaw does not find a name without its prefix.
    expect(agents).toMatchObject({
      defaults: { model: { primary: 'anthropic/claude-own', fallbacks: ['anthropic/claude-two'] } },
    })
  })

  test('secrets are not in it: it names the file that has them', () => {
    const { secrets, gateway, models } = renderConfig(inputs)
    expect(secrets).toMatchObject({ providers: { chowder: { source: 'file', path: inputs.secretsFile } } })
    const named = (id: string) => ({ source: 'file', provider: 'chowder', id })
    expect(gateway).toMatchObject({ auth: { mode: 'token', token: named('/gatewayToken') } })
    expect(models).toMatchObject({ providers: { anthropic: { apiKey: named('/relayToken') } } })
  })

  test('overrides replace defaults, null removes, arrays replace', () => {
    const overrides = {
      agents: { defaults: { model: { primary: 'anthropic/x' }, heartbeat: null } },
      tools: { deny: ['exec'] },
    }
    const { agents, tools } = renderConfig({ ...inputs, overrides })
    expect(agents).toEqual({ defaults: { model: { primary: 'anthropic/x' }, utilityModel: '', skipBootstrap: true } })
    expect(tools).toEqual({ toolSearch: false, codeMode: false, deny: ['exec'] })
  })

  test('no override that is stored switches code mode on', () => {
    const codeMode = { enabled: true }
    for (const overrides of [
      { tools: null },
      { tools: { codeMode: null } },
      { tools: { codeMode: true } },
      {
        tools: { codeMode },
        agents: {
          defaults: { models: { 'anthropic/x': { codeMode: true } } },
          entries: { main: { tools: { codeMode, deny: ['exec'] } } },
        },
      },
    ]) {
      const config = renderConfig({ ...inputs, overrides })
      expect(config.tools).toMatchObject({ codeMode: false })
      expect(JSON.stringify(config).match(/codeMode[^,}]*/g)).toEqual(['codeMode":false'])
    }
  })
})

test('the file keeps the gateway’s own keys, and no others', () => {
  const rendered = renderConfig(inputs)
  expect(mergeForFile(rendered, null)).toEqual(rendered)
  const meta = { lastTouchedVersion: '2026.9.6' }
  expect(mergeForFile(rendered, { meta, gateway: { port: 1 }, channels: { telegram: {} } })).toEqual({
    ...rendered,
    meta,
  })
})

test('the gateway is the release’s own, and writes to no folder but the sandbox’s', () => {
  const paths = { node: '/n/node', release: '/r', home: '/h', port: 18789 }
  expect(gatewayCommand(paths).slice(-10, -4)).toEqual([
    '/n/node',
    '--import',
    expect.stringMatching(/^data:text\/javascript,/),
    '/r/node_modules/openclaw/openclaw.mjs',
    'gateway',
    'run',
  ])
  const { CLAWHUB_URL, PATH, NODE_COMPILE_CACHE, ...env } = gatewayEnv(paths, { clawhubUrl: 'http://hub' })
  expect(CLAWHUB_URL).toBe('http://hub')
  expect(NODE_COMPILE_CACHE).toBe('/r-warm-start')
  const folders = Object.values(env).filter((value) => value.startsWith('/'))
  expect(folders).toHaveLength(5)
  for (const path of folders) expect(path).toMatch(/^\/h\/(home|state|tmp)/)
  expect(gatewayEnv(paths)).not.toHaveProperty('CLAWHUB_URL')
  expect(gatewayEnv(paths)).not.toHaveProperty('OPENCLAW_PROXY_URL')
})

test('a gateway that has a proxy uses it, gives it to its programs, and still ends its turns before it ends', () => {
  const direct = { node: '/n/node', release: '/r', home: '/h', port: 18789 }
  const paths = { ...direct, proxy: 'http://127.0.0.1:3128' }
  expect(gatewayEnv(paths)).toMatchObject({ OPENCLAW_PROXY_URL: paths.proxy, NODE_USE_ENV_PROXY: '1' })
  const command = gatewayCommand(paths)
  const program = (text: string) => expect.stringMatching(new RegExp(`^data:text/javascript,.*${text}`))
  expect(command.slice(-11, -7)).toEqual(['--import', program('SIGTERM'), '--import', program('EAI_AGAIN')])
  expect([...command.slice(0, -11), ...command.slice(-7)]).toEqual(gatewayCommand(direct))
})

test('a proxy that asks who the agent is has its URL among the secrets, and every gateway reads it at its start', async () => {
  const paths = { node: '/n/node', release: '/r', home: '/h', port: 18789, proxy: 'http://host:1', proxyAsksWho: true }
  expect(gatewayEnv(paths)).not.toHaveProperty('OPENCLAW_PROXY_URL')
  const program = gatewayCommand(paths).find((argument) => argument.includes('OPENCLAW_PROXY_URL')) ?? ''
  await using folder = await mkdtempDisposable(join(tmpdir(), 'chowder-proxy-'))
  const env = { OPENCLAW_CONFIG_PATH: join(folder.path, 'openclaw.json') }
  const used = async (secrets: object) => {
    await writeFile(join(folder.path, 'secrets.json'), JSON.stringify(secrets))
    const show = ['-p', 'String(process.env.OPENCLAW_PROXY_URL)']
    return (await promisify(execFile)(process.execPath, ['--import', program, ...show], { env })).stdout.trim()
  }
  expect(await used({ proxyUrl: 'http://a:b@host:1' })).toBe('http://a:b@host:1')
  expect(await used({})).toBe('undefined')
})

test('where Chowder has a proxy, no override names another one', () => {
  const overrides = { proxy: { proxyUrl: 'http://mine:1', enabled: true } }
  expect(renderConfig({ ...inputs, overrides }).proxy).toEqual(overrides.proxy)
  expect(renderConfig({ ...inputs, overrides, proxyUrl: 'http://host:1' }).proxy).toEqual({ enabled: true })
})

test('Matrix, whose plugin connects past the proxy of the gateway, gets it as its own, unless it has another', () => {
  const proxyUrl = 'http://127.0.0.1:3128'
  const of = (config: object, channel = 'matrix') => {
    const channels = [{ channel, enabled: true, config: { ...config } }]
    const rendered = renderConfig({ ...inputs, channels, proxyUrl })
    expect(rendered).not.toHaveProperty('proxy')
    return (rendered.channels as Record<string, unknown>)[channel]
  }
  expect(of({})).toEqual({ enabled: true, proxy: proxyUrl })
  expect(of({ proxy: 'http://mine' })).toEqual({ enabled: true, proxy: 'http://mine' })
  expect(of({}, 'telegram')).toEqual({ enabled: true })
})

test('where no name server answers, names have an address, and elsewhere they are what they are', async () => {
  const program = fileURLToPath(import.meta.resolve('#openclaw/inside/proxied-names.mjs'))
  const ask = `import dns from 'node:dns/promises'
    import { lookup } from 'node:dns/promises'
    const fails = (code) => { inner = async () => { throw Object.assign(new Error(), { code }) } }
    let inner
    dns.lookup = (...args) => inner(...args)
    await import(process.argv[1])
    const { lookup: patched } = dns
    const of = (...args) => patched(...args).catch(({ code }) => code)
    fails('EAI_AGAIN')
    const answers = [await of('a'), await of('a', { all: true })]
    fails('ENOTFOUND')
    answers.push(await of('a'), lookup === patched)
    console.log(JSON.stringify(answers))`
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', ask, program])
  const found = { address: expect.any(String), family: 4 }
  expect(JSON.parse(stdout)).toEqual([found, [found], 'ENOTFOUND', true])
})

describe('patchFor', () => {
  const hidden = '__OPENCLAW_REDACTED__'

  test('equal configurations need no patch', () => {
    const config = { a: { b: [1, { c: 2 }] } }
    expect(patchFor(config, config, structuredClone(config))).toBeNull()
  })

  test('only differences are sent, null for unwanted keys', () => {
    expect(patchFor({ a: { b: 1, c: 2 }, d: 3 }, {}, { a: { b: 1, c: 4 }, e: { f: 1 } })).toEqual({
      patch: { a: { c: 4 }, d: null, e: { f: 1 } },
      replacePaths: [],
    })
  })

  test('changed and removed arrays are confirmed, those of the gateway’s defaults too', () => {
    const shown = { a: { list: [1, 2] }, gone: { deep: { list: [1] } } }
    const effective = { ...shown, gone: { deep: { list: [1], more: [] } } }
    expect(patchFor(shown, effective, { a: { list: [1] } })).toEqual({
      patch: { a: { list: [1] }, gone: null },
      replacePaths: ['a.list', 'gone.deep.list', 'gone.deep.more'],
    })
  })

  test('the gateway’s own keys are not changed', () => {
    expect(patchFor({ meta: { x: 1 }, a: 1 }, {}, { a: 1 })).toBeNull()
    expect(patchFor({ a: { meta: 1 } }, {}, { a: {} })).toEqual({ patch: { a: { meta: null } }, replacePaths: [] })
  })

  test('a running gateway keeps the secrets that it was started with, in whichever form', () => {
    const rest = { port: 1 }
    const shown = {
      gateway: { ...rest, auth: { mode: 'token', token: hidden } },
      proxy: { proxyUrl: hidden },
      models: { providers: { anthropic: { api: 'a', apiKey: hidden } } },
    }
    const wanted = renderConfig(inputs)
    const providers = { anthropic: { api: 'a', apiKey: { source: 'file', provider: 'chowder', id: '/relayToken' } } }
    expect(patchFor(shown, {}, { ...wanted, gateway: rest, models: { providers } })?.patch).not.toHaveProperty('models')
    const patched = JSON.stringify(patchFor(shown, {}, wanted, { keepsProxy: true }))
    for (const key of ['secrets', 'auth', 'proxy', 'apiKey']) expect(patched).not.toContain(`"${key}"`)
    expect(
      isApplied({ ...wanted, ...shown, gateway: wanted.gateway, models: wanted.models }, wanted, {
        keepsProxy: true,
      }),
    ).toBe(true)
  })

  test('a running gateway keeps the proxy that an earlier version gave it, and gets or loses one of the overrides', () => {
    const keepsProxy = true
    const given = { proxy: { proxyUrl: hidden, enabled: true } }
    expect(patchFor(given, {}, {}, { keepsProxy })).toEqual({ patch: { proxy: { enabled: null } }, replacePaths: [] })
    expect(patchFor({ proxy: { proxyUrl: hidden } }, {}, {}, { keepsProxy })).toBeNull()
    expect(isApplied({ proxy: { proxyUrl: hidden } }, {}, { keepsProxy })).toBe(true)
    const own = { proxy: { proxyUrl: 'http://mine:1' } }
    expect(patchFor({}, {}, own)).toEqual({ patch: own, replacePaths: [] })
    expect(patchFor(own, {}, own)).toBeNull()
    expect(patchFor(own, {}, {})).toEqual({ patch: { proxy: null }, replacePaths: [] })
  })

  test('a hidden secret is always sent, for it may have changed', () => {
    expect(patchFor({ a: { apiKey: hidden, b: 1 } }, {}, { a: { apiKey: 'k', b: 1 } })).toEqual({
      patch: { a: { apiKey: 'k' } },
      replacePaths: [],
    })
    expect(patchFor({ a: { apiKey: hidden } }, {}, { a: {} })).toEqual({
      patch: { a: { apiKey: null } },
      replacePaths: [],
    })
  })

  test('a secret is applied when it is present', () => {
    expect(isApplied({ a: { apiKey: hidden }, meta: {} }, { a: { apiKey: 'k' } })).toBe(true)
    expect(isApplied({ a: { apiKey: hidden } }, { a: {} })).toBe(false)
    expect(isApplied({ a: {} }, { a: { apiKey: 'k' } })).toBe(false)
  })
})
