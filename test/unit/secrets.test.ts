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

test('S18: no two values have the same nonce, and 65,536 share the random part of theirs', () => {
  const count = 66_000
  const nonces = Array.from({ length: count }, () =>
    Buffer.from(vault.seal('', 'a').slice(3), 'base64url').subarray(0, 12).toString('hex'),
  )
  expect(new Set(nonces).size).toBe(count)
  const randomParts = new Set(nonces.map((nonce) => nonce.slice(0, 20)))
  expect(randomParts.size).toBeLessThanOrEqual(count / 65_536 + 2)
})

test('S18: two processes with the same key do not use the same nonces', () => {
  const key = randomBytes(32)
  const randomPart = () => createVault(key).seal('', 'a').slice(3, 16)
  expect(randomPart()).not.toBe(randomPart())
})

test('a value that an earlier version has sealed is unsealed', () => {
  const sealed = 'v1.olJ1mPikX-09GnQK_cvacttdU2wcSZ0BK9u_nnKXr5u8pUCaQQ'
  expect(createVault(Buffer.alloc(32, 7)).unseal(sealed, 'instances/x/sealed_token')).toBe('sk-before')
})

test('a secret can be unsealed only in its place, with its key, and unaltered', () => {
  const sealed = vault.seal('x', 'a')
  const altered = `${sealed.slice(0, -2)}${sealed.endsWith('AA') ? 'BB' : 'AA'}`
  expect(() => vault.unseal(sealed, 'b')).toThrow('cannot be unsealed')
  expect(() => createVault(randomBytes(32)).unseal(sealed, 'a')).toThrow('cannot be unsealed')
  expect(() => vault.unseal(altered, 'a')).toThrow('cannot be unsealed')
  expect(() => vault.unseal('v2.abc', 'a')).toThrow('unknown version')
})
