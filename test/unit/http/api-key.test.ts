import { expect, test } from 'vitest'
import { formOf, newApiKey } from '#http/api-key.ts'

test.each(['organization', 'scoped'] as const)(
  'a new key of the kind %s is checked, and is another each time',
  (kind) => {
    const keys = Array.from({ length: 100 }, () => newApiKey(kind))
    expect(new Set(keys).size).toBe(100)
    expect(new Set(keys.map(formOf))).toEqual(new Set(['checked']))
  },
)

test('a key of which any character is wrong, missing or too many is malformed', () => {
  const key = newApiKey('scoped')
  for (let at = 'chd_sk_'.length; at < key.length; at += 1) {
    const other = key[at] === '0' ? '1' : '0'
    expect(formOf(key.slice(0, at) + other + key.slice(at + 1)), `character ${at}`).toBe('malformed')
  }
  expect([key.slice(0, -1), `${key}0`, key.toUpperCase().replace('CHD_SK_', 'chd_sk_')].map(formOf)).toEqual(
    Array(3).fill('malformed'),
  )
})

test('a key without a checksum is malformed', () => {
  expect(formOf(`chd_org_${'0123456789abcdef'.repeat(4)}`)).toBe('malformed')
})

test.each(['', 'sk-ant-api03-abc', 'chd_', 'CHD_ORG_0'])('%j is of another server', (key) => {
  expect(formOf(key)).toBe('foreign')
})
