import { randomBytes } from 'node:crypto'
import { expect, test } from 'vitest'
import { createVault } from '#platform/secrets.ts'

const vault = createVault(randomBytes(32))

test('a sealed secret can be unsealed, and is not in the sealed text', () => {
  const sealed = vault.seal('sk-canary-🦞', 'a/b/c')
  expect(vault.unseal(sealed, 'a/b/c')).toBe('sk-canary-🦞')
  expect(Buffer.from(sealed.slice(3), 'base64url').includes('canary')).toBe(false)
})

test('a secret that is sealed twice gives two texts', () => {
  expect(vault.seal('x', 'a')).not.toBe(vault.seal('x', 'a'))
})

test('a secret can be unsealed only in its place, with its key, and unaltered', () => {
  const sealed = vault.seal('x', 'a')
  const altered = `${sealed.slice(0, -2)}${sealed.endsWith('AA') ? 'BB' : 'AA'}`
  expect(() => vault.unseal(sealed, 'b')).toThrow('cannot be unsealed')
  expect(() => createVault(randomBytes(32)).unseal(sealed, 'a')).toThrow('cannot be unsealed')
  expect(() => vault.unseal(altered, 'a')).toThrow('cannot be unsealed')
  expect(() => vault.unseal('v2.abc', 'a')).toThrow('unknown version')
})
