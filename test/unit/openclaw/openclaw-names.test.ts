import { describe, expect, test } from 'vitest'
import { sessionIdOf, sessionKey } from '#openclaw/gateway/session-key.ts'
import { modelPattern, toGatewayModel } from '#openclaw/models/model.ts'
import { defaultModel } from '#openclaw/models/models.ts'
import { defaultRelease, knownReleases, openclawVersion, releaseFolder } from '#openclaw/releases.ts'

describe('sessions', () => {
  test('main is main, any other id is its bytes in hex', () => {
    expect(sessionKey('main')).toBe('main')
    expect(sessionKey('sa')).toBe('s-7361')
    expect(sessionKey('🦞')).toBe('s-f09fa69e')
  })

  test('no two ids share a key, also after the gateway has normalized keys', () => {
    const ids = [
      'main',
      'sa',
      'SA',
      ' sa',
      'sa ',
      ' sa ',
      's-7361',
      'agent:main:sa',
      'agent:main:main',
      'Main',
      '%2F',
      '/',
    ]
    const keys = ids.map((id) => sessionKey(id).trim().toLowerCase())
    expect(new Set(keys).size).toBe(ids.length)
    for (const key of keys) expect(key).toMatch(/^(main|s-[0-9a-f]+)$/)
  })

  test.each(['main', 'sa', 'SA', ' sa ', 's-7361', 'agent:main:main', '🦞/%', 'é'.repeat(100)])(
    'the id %j is found again by its full key',
    (id) => expect(sessionIdOf(`agent:main:${sessionKey(id)}`)).toBe(id),
  )

  test.each(['main', 's-7361', 'agent:other:main', 'agent:main:telegram:direct:1', 'agent:main:s-', 'agent:main:s-ff'])(
    'the key %s belongs to no id',
    (key) => expect(sessionIdOf(key)).toBeNull(),
  )

  test.each([
    `agent:main:s-${Buffer.from('main').toString('hex')}`,
    'agent:main:s-736',
    'agent:main:s-7A',
    `agent:main:s-${'61'.repeat(201)}`,
  ])('nor does the key %s, which no id makes', (key) => expect(sessionIdOf(key)).toBeNull())

  test('an id has 1 to 200 bytes', () => {
    expect(sessionKey('é'.repeat(100))).toHaveLength(402)
    for (const id of ['', 'é'.repeat(100).concat('a'), '\ud800']) {
      expect(() => sessionKey(id)).toThrow('A session id must have 1 to 200 bytes of UTF-8.')
    }
  })
})

describe('models', () => {
  test.each([
    ['anthropic', 'claude-opus-5', 'anthropic/claude-opus-5'],
    ['anthropic', 'anthropic/claude-opus-5', 'anthropic/claude-opus-5'],
    ['gemini', 'gemini-2.5-flash', 'google/gemini-2.5-flash'],
    ['gemini', 'gemini/gemini-2.5-flash', 'google/gemini-2.5-flash'],
    ['gemini', 'google/gemini-2.5-flash', 'google/gemini-2.5-flash'],
    ['openai', 'openai/meta/llama', 'openai/meta/llama'],
    ['openai', 'openclaw', null],
  ] as const)('%s, asked for %s, gets %s', (provider, model, expected) => {
    expect(toGatewayModel(provider, model)).toBe(expected)
  })

  test.each(['openai/gpt-4o', 'google/x', 'openclaw/main', 'anthropic/'])('%s is no model of anthropic', (model) => {
    expect(() => toGatewayModel('anthropic', model)).toThrow('This instance uses anthropic')
  })

  test.each(['a\r\nx: y', 'a b', '-a', '', 'é', 'a'.repeat(201)])('%j cannot become a header', (model) => {
    expect(new RegExp(modelPattern).test(model)).toBe(false)
  })
})

test('the default release is known, locks one OpenClaw, and has a model of each provider', () => {
  expect(knownReleases()).toContain(defaultRelease)
  expect(openclawVersion(defaultRelease)).toMatch(/^\d{4}\.\d+\.\d+$/)
  for (const provider of ['anthropic', 'openai', 'gemini'] as const) {
    expect(defaultModel(defaultRelease, provider)).toMatch(new RegExp(modelPattern))
  }
  expect(releaseFolder('/data', 'v1')).toMatch(/^\/data\/releases\/v1-[0-9a-f]{12}$/)
})

test('an unknown release is an error that lists the known ones', () => {
  expect(() => openclawVersion('../v1')).toThrow('there are v1')
})
