import { describe, expect, test } from 'vitest'
import { AppError } from '#errors/app-error.ts'
import { checkOverrides } from '#openclaw/config/check-overrides.ts'
import { overriddenModel, parseOverrides } from '#openclaw/config/overrides.ts'

const refusal = (config: Record<string, unknown>): string => {
  try {
    parseOverrides(config)
  } catch (error) {
    if (error instanceof AppError && error.kind === 'invalid') return error.message
    throw error
  }
  throw new Error(`accepted: ${JSON.stringify(config)}`)
}

describe('what is accepted', () => {
  test.each([
    ['a dot path', { 'agents.defaults.model.primary': 'x' }],
    ['nested objects', { agents: { defaults: { model: { primary: 'x' } } } }],
    ['a dot path to an object', { 'agents.defaults': { model: { primary: 'x' } } }],
    ['quoted brackets', { '["agents"].defaults[\'model\']["primary"]': 'x' }],
  ])('%s sets the same value', (_way, config) => {
    expect(parseOverrides(config).tree).toEqual({ agents: { defaults: { model: { primary: 'x' } } } })
  })

  test('both forms can be mixed', () => {
    expect(parseOverrides({ messages: { ackReaction: 'x' }, 'messages.responsePrefix': 'y' }).tree).toEqual({
      messages: { ackReaction: 'x', responsePrefix: 'y' },
    })
  })

  test('a quoted key keeps its dots, and so does a nested one', () => {
    const models = { 'anthropic/claude-4.6': { alias: 'a' } }
    expect(parseOverrides({ 'agents.defaults.models["anthropic/claude-4.6"].alias': 'a' }).tree).toEqual({
      agents: { defaults: { models } },
    })
    expect(parseOverrides({ 'agents.defaults': { models } }).tree).toEqual({ agents: { defaults: { models } } })
  })

  test('a number is an index in brackets and a key after a dot', () => {
    expect(parseOverrides({ 'a.list[0].name': 1, 'a.list[1]': 2, 'a.guilds.123': 3 }).tree).toEqual({
      a: { list: [{ name: 1 }, 2], guilds: { 123: 3 } },
    })
  })

  test('null is kept: it removes a default', () => {
    expect(parseOverrides({ 'agents.defaults.heartbeat': null }).tree).toEqual({
      agents: { defaults: { heartbeat: null } },
    })
  })

  test('agent.system_prompt is taken out, other keys of agent are left to the gateway', () => {
    expect(parseOverrides({ agent: { system_prompt: 'Be kind.' } })).toEqual({ systemPrompt: 'Be kind.', tree: {} })
    expect(parseOverrides({ 'agent.system_prompt': 'Be kind.', 'agent.x': 1 })).toEqual({
      systemPrompt: 'Be kind.',
      tree: { agent: { x: 1 } },
    })
    expect(parseOverrides({ agent: { system_prompt: null } })).toEqual({ systemPrompt: null, tree: {} })
  })
})

describe('protected paths are refused in every form', () => {
  test.each([
    { gateway: { port: 1 } },
    { 'gateway.auth.token': 'x' },
    { '["gateway"].port': 1 },
    { gateway: null },
    { gateway: {} },
    { plugins: { allow: ['x'] } },
    { 'plugins.entries.x.enabled': true },
    { env: { vars: {} } },
    { auth: { profiles: {} } },
    { secrets: { providers: {} } },
    { update: { checkOnStart: true } },
    { discovery: { mdns: { mode: 'full' } } },
    { 'models.catalogRefresh.enabled': true },
    { models: { providers: { x: { baseUrl: 'http://x' } } } },
    { models: {} },
    { models: null },
    { models: 'x' },
    { 'agents.defaults.workspace': '/' },
    { agents: { defaults: { workspace: '/' } } },
    { agents: { 'defaults.workspace': '/' } },
    { agents: null },
    { 'agents.defaults': null },
    { 'agents.entries.main.workspace': '/' },
    { agents: { entries: { 'a.b': { workspace: '/' } } } },
    { 'agents.entries["x"]': { workspace: '/' } },
    { 'agents.entries': null },
    { 'agents.entries.main': null },
    { 'agents.list[0].workspace': '/' },
    { agents: { list: [{ id: 'main', workspace: '/' }] } },
  ])('%j', (config) => {
    expect(refusal(config)).toMatch(/cannot be overridden: Chowder sets [a-z.*A-Z]+ itself/)
  })

  test('paths beside them are accepted', () => {
    const neighbours = {
      'models.mode': 'merge',
      'agents.defaults.workspaces': 1,
      'agents.entries.main.model': 'x',
      gatewayish: 1,
      'tools.gateway': 1,
    }
    expect(() => parseOverrides(neighbours)).not.toThrow()
  })

  test('the message names the path and the rule', () => {
    expect(refusal({ agents: { entries: { main: { workspace: '/' } } } })).toBe(
      'openclaw_config: "agents.entries.main.workspace" cannot be overridden: Chowder sets agents.entries.*.workspace itself.',
    )
  })
})

describe('keys that would do harm', () => {
  test.each([
    ['__proto__.polluted', { '__proto__.polluted': 1 }],
    ['nested', JSON.parse('{"tools": {"__proto__": {"polluted": 1}}}')],
    ['constructor', { 'tools.constructor.prototype.polluted': 1 }],
    ['in an array', { 'tools.list': [JSON.parse('{"__proto__": 1}')] }],
    ['quoted', { 'tools["prototype"]': 1 }],
    ['another file', { tools: { $include: '/etc/passwd' } }],
  ])('%s is refused', (_name, config) => {
    expect(refusal(config)).toMatch(/must not contain the key/)
    expect(Object.hasOwn(Object.prototype, 'polluted')).toBe(false)
  })
})

test.each(['', '.', 'a.', '.a', 'a..b', 'a[', 'a[x]', 'a["x"', 'a.["b"]', 'a[0]b', '[0]', 'a b"c', 'a[""]x'])(
  'the malformed path %j is refused',
  (path) => {
    expect(refusal({ [path]: 1 })).toMatch(/is not a path/)
  },
)

test.each([
  [{ a: { b: 1 }, 'a.b': 2 }],
  [{ 'a.b': 1, 'a["b"]': 1 }],
  [{ a: 1, 'a.b': 2 }],
  [{ 'a.b': 2, a: 1 }],
  [{ 'a[0]': 1, 'a.b': 2 }],
  [{ a: [1], 'a[0]': 2 }],
])('two answers to one question are refused: %j', (config) => {
  expect(refusal(config)).toMatch(/is set twice, or conflicts/)
})

test('an array with a gap is refused', () => {
  expect(refusal({ 'a[1]': 1 })).toMatch(/leaves a gap: there is no element 0/)
})

test('a system prompt that is no text is refused', () => {
  expect(refusal({ 'agent.system_prompt': 3 })).toBe('openclaw_config: "agent.system_prompt" must be a text.')
})

test('depth, number and size have limits', () => {
  let deep: Record<string, unknown> = { end: 1 }
  for (let level = 0; level < 40; level += 1) deep = { a: deep }
  expect(refusal(deep)).toMatch(/deeper than 32 levels/)
  expect(refusal({ a: Object.fromEntries(Array.from({ length: 2001 }, (_, at) => [`k${at}`, 1])) })).toMatch(
    /2000 values/,
  )
  expect(refusal({ a: 'x'.repeat(300_000) })).toMatch(/256 KiB/)
})

test('the argument is not changed', () => {
  const config = { a: {}, 'a.b': 1, list: ['x'], 'list[1]': 'y' }
  const before = structuredClone(config)
  expect(parseOverrides(config).tree).toEqual({ a: { b: 1 }, list: ['x', 'y'] })
  expect(config).toEqual(before)
})

test.each<[Record<string, unknown>, string | null]>([
  [{ 'agents.defaults.model.primary': 'anthropic/claude-opus-5' }, 'claude-opus-5'],
  [{ agents: { defaults: { model: { primary: 'google/models/gemini-4' } } } }, 'models/gemini-4'],
  [{ 'agents.defaults': { model: 'gpt-5.5' } }, 'gpt-5.5'],
  [{ 'agents.defaults.model.primary': null }, null],
  [{ 'agents.defaults.model.fallbacks': ['anthropic/x'] }, null],
  [{}, null],
])('%j makes the agent’s own model %s', (config, model) => {
  expect(overriddenModel(config)).toBe(model)
})

describe('code mode', () => {
  const check = (config: Record<string, unknown>) => () => checkOverrides('v1', 'anthropic', config)

  test.each([
    { 'tools.codeMode': true },
    { tools: { codeMode: 'auto' } },
    { tools: { codeMode: null } },
    { 'tools.codeMode.enabled': true },
    { 'agents.entries.main.tools.codeMode': true },
    { agents: { defaults: { models: { 'anthropic/claude-opus-5': { codeMode: true } } } } },
  ])('%j is refused', (config) => {
    expect(check(config)).toThrow(/^openclaw_config: "codeMode" cannot be overridden: Chowder sets tools.codeMode/)
  })

  test('to leave it off is no override', () => {
    expect(check({ 'tools.codeMode': false, 'tools.deny': ['exec'] })).not.toThrow()
  })
})
