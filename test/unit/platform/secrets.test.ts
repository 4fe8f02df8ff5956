import { createDecipheriv, hkdfSync, randomBytes } from 'node:crypto'
import { expect, test } from 'vitest'
import { createVault, keyIdOf, type Place, sealedForm } from '#platform/secrets.ts'

const vault = createVault(randomBytes(32))
const place: Place = 'instances/a/sealed_token'
const payloadOf = (sealed: string) => Buffer.from(sealed.split('.').at(-1) ?? '', 'base64url')

test('a sealed secret can be unsealed, and is not in the sealed text', () => {
  const sealed = vault.seal('sk-canary-🦞', place)
  expect(vault.unseal(sealed, place)).toBe('sk-canary-🦞')
  expect(sealed).toMatch(sealedForm)
  expect(payloadOf(sealed).includes('canary')).toBe(false)
})

test('a sealed value names its key by an id that is no part of the key', () => {
  const key = randomBytes(32)
  const sealed = createVault(key).seal('x', place)
  expect(sealed.split('.').slice(0, 2)).toEqual(['v1', keyIdOf(key)])
  expect(keyIdOf(key)).toMatch(/^[0-9a-f]{8}$/)
  expect(key.toString('hex')).not.toContain(keyIdOf(key))
  expect(keyIdOf(Buffer.alloc(32, 7))).toBe(keyIdOf(Buffer.alloc(32, 7)))
})

test('a secret that is sealed twice gives two texts', () => {
  expect(vault.seal('x', place)).not.toBe(vault.seal('x', place))
})

test('S18: no two values of a table have the same nonce, and 65,536 share the random part of theirs', () => {
  const count = 66_000
  const nonces = Array.from({ length: count }, () => payloadOf(vault.seal('', place)).subarray(0, 12).toString('hex'))
  expect(new Set(nonces).size).toBe(count)
  const randomParts = new Set(nonces.map((nonce) => nonce.slice(0, 20)))
  expect(randomParts.size).toBeLessThanOrEqual(count / 65_536 + 2)
})

test('S18: two processes with the same key do not use the same nonces', () => {
  const key = randomBytes(32)
  const randomPart = () => payloadOf(createVault(key).seal('', place)).subarray(0, 10).toString('hex')
  expect(randomPart()).not.toBe(randomPart())
})

test('each table has a subkey: the key of one seals nothing of another', () => {
  const key = randomBytes(32)
  const channelPlace: Place = 'channels/a.b/sealed_config'
  const payload = payloadOf(createVault(key).seal('x', channelPlace))
  const decrypt = (subkey: Buffer) =>
    createDecipheriv('aes-256-gcm', subkey, payload.subarray(0, 12), { authTagLength: 16 })
      .setAAD(Buffer.from(channelPlace))
      .setAuthTag(payload.subarray(12, 28))
  const read = (subkey: Buffer) => {
    const decipher = decrypt(subkey)
    return decipher.update(payload.subarray(28), undefined, 'utf8') + decipher.final('utf8')
  }
  const subkeyOf = (table: string) => Buffer.from(hkdfSync('sha256', key, '', `chowder/${table}`, 32))
  expect(read(subkeyOf('channels'))).toBe('x')
  for (const other of [key, subkeyOf('instances')]) expect(() => read(other)).toThrow('unable to authenticate')
})

test('of two keys the first one seals and both unseal; a key that is not accepted is named', () => {
  const [old, next] = [randomBytes(32), randomBytes(32)]
  const byOld = createVault(old).seal('old', place)
  const changing = createVault([next, old])
  expect(changing.keyIds).toEqual([keyIdOf(next), keyIdOf(old)])
  expect(changing.unseal(byOld, place)).toBe('old')
  const byNext = changing.seal('next', place)
  expect(byNext.startsWith(`v1.${keyIdOf(next)}.`)).toBe(true)
  expect(() => createVault(old).unseal(byNext, place)).toThrow(
    `it was sealed with the secret key ${keyIdOf(next)}, and this process accepts ${keyIdOf(old)}`,
  )
  expect(createVault(next).unseal(byNext, place)).toBe('next')
  expect(() => createVault(next).unseal(byOld, place)).toThrow(`sealed with the secret key ${keyIdOf(old)}`)
})

test('a secret can be unsealed only in its place, with its key, and unaltered', () => {
  const key = randomBytes(32)
  const own = createVault(key)
  const sealed = own.seal('x', place)
  const altered = `${sealed.slice(0, -2)}${sealed.endsWith('AA') ? 'BB' : 'AA'}`
  for (const other of ['instances/b/sealed_token', 'instances/a/sealed_config', 'channels/a/sealed_token'] as const)
    expect(() => own.unseal(sealed, other)).toThrow('cannot be unsealed')
  expect(() => createVault(randomBytes(32)).unseal(sealed, place)).toThrow('cannot be unsealed')
  expect(() => own.unseal(altered, place)).toThrow('cannot be unsealed')
  // Under the id of another key that is accepted as well.
  const other = randomBytes(32)
  const renamed = sealed.replace(keyIdOf(key), keyIdOf(other))
  expect(() => createVault([key, other]).unseal(renamed, place)).toThrow('cannot be unsealed')
  for (const broken of ['v2.a.b', 'v1.a.b.c', '', 'sk-plain'])
    expect(() => own.unseal(broken, place)).toThrow('unknown version')
  for (const short of ['v1.', 'v1.AA', `v1.${keyIdOf(key)}.`, `v1.${keyIdOf(key)}.AA`])
    expect(() => own.unseal(short, place)).toThrow('cannot be unsealed')
})
