import { describe, expect, test } from 'vitest'
import { checkPatch, isUsableName, masked, mergeSettings } from '#api/skills/settings.ts'

describe('masked', () => {
  test('shows the end of a long secret and nothing of a short one', () => {
    expect(masked('sk-0123456789abcdef')).toBe('••••cdef')
    for (const short of ['', 'a', '123456789012345']) expect(masked(short)).toBe('••••')
  })
})

describe('mergeSettings', () => {
  test('changes only the keys that are sent, and null removes a key', () => {
    const stored = { enabled: true, apiKey: 'k', env: { A: '1', B: '2' }, config: { list: [1], deep: { x: 1, y: 2 } } }
    const patch = { apiKey: null, env: { B: null, C: '3' }, config: { list: [2], deep: { x: null } } }
    expect(mergeSettings(stored, patch)).toEqual({
      enabled: true,
      env: { A: '1', C: '3' },
      config: { list: [2], deep: { y: 2 } },
    })
    expect(stored.env).toEqual({ A: '1', B: '2' })
  })

  test('removes empty objects', () => {
    expect(mergeSettings({ env: { A: '1' } }, { env: { A: null }, config: {} })).toEqual({})
  })
})

describe('checkPatch', () => {
  test.each(['SEARCH_API_KEY', 'a', '_x9', 'GIT_TOKEN', 'PATHS', 'HOMEPAGE', 'UNLD_X'])(
    'accepts the variable %s',
    (name) => {
      checkPatch({ env: { [name]: 'x' } })
    },
  )

  test.each([
    'PATH',
    'Path',
    'LD_LIBRARY_PATH',
    'DYLD_INSERT_LIBRARIES',
    'BASH_ENV',
    'NODE_OPTIONS',
    'PYTHONPATH',
    'PERL5OPT',
  ])('refuses the variable %s', (name) => {
    expect(() => checkPatch({ env: { [name]: 'x' } })).toThrow(/changes how programs/)
  })

  test('refuses unsafe keys at any depth, and nesting without end', () => {
    for (const key of ['__proto__', 'constructor', 'prototype', '$include']) {
      expect(() => checkPatch({ config: { a: [{ [key]: 1 }] } })).toThrow(`must not contain the key ${key}`)
    }
    let deep: Record<string, unknown> = {}
    for (let level = 0; level < 10_000; level += 1) deep = { a: deep }
    expect(() => checkPatch({ config: deep })).toThrow(/nested deeper/)
  })
})

test('a skill can be configured under any name that is not an unsafe key', () => {
  for (const name of ['web-search', 'Other Name', 'my.key']) expect(isUsableName(name)).toBe(true)
  for (const name of ['', '__proto__', '$include', 'a\nb', 'x'.repeat(129)]) expect(isUsableName(name)).toBe(false)
})
