import { randomBytes } from 'node:crypto'
import { expect, test } from 'vitest'
import { openVault } from '#platform/secrets.ts'

const vault = openVault(randomBytes(32))

test('what was sealed opens again, and is not in the sealed text', () => {
  const sealed = vault.seal('sk-canary-🦞', 'a/b/c')
  expect(vault.open(sealed, 'a/b/c')).toBe('sk-canary-🦞')
  expect(Buffer.from(sealed.slice(3), 'base64url').includes('canary')).toBe(false)
})

test('the same text sealed twice does not look the same', () => {
  expect(vault.seal('x', 'a')).not.toBe(vault.seal('x', 'a'))
})

test('it opens only where it was sealed, with the key that sealed it, and unaltered', () => {
  const sealed = vault.seal('x', 'a')
  const altered = `${sealed.slice(0, -2)}${sealed.endsWith('AA') ? 'BB' : 'AA'}`
  expect(() => vault.open(sealed, 'b')).toThrow('does not open')
  expect(() => openVault(randomBytes(32)).open(sealed, 'a')).toThrow('does not open')
  expect(() => vault.open(altered, 'a')).toThrow('does not open')
  expect(() => vault.open('v2.abc', 'a')).toThrow('unknown version')
})
