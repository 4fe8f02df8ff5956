import { randomBytes } from 'node:crypto'
import { crc32 } from 'node:zlib'

/** The prefix of each kind of key. */
export const keyPrefixes = { organization: 'chd_org_', scoped: 'chd_sk_' } as const

const secretBytes = 32
const keyFormat = /^(chd_(?:org|sk)_[0-9a-f]{64})([0-9a-f]{8})$/
const ownPrefix = /^chd_(org|sk)_/

const checksumOf = (text: string): string => crc32(text).toString(16).padStart(8, '0')

/** Makes a new key: its prefix, 64 random hexadecimal digits, and the CRC-32 of both in 8 more. */
export function newApiKey(kind: keyof typeof keyPrefixes): string {
  const key = keyPrefixes[kind] + randomBytes(secretBytes).toString('hex')
  return key + checksumOf(key)
}

/** The prefix of a client token. The rest is sealed: `api/keys/client-tokens.ts`. */
export const clientTokenPrefix = 'chd_ct_'

/**
 * The form of a key, determined without the database. `checked`: its checksum is right. `token`: it is a client token.
 * `malformed`: it was not copied whole, or is a guess. `foreign`: it is another server's.
 */
export type KeyForm = 'checked' | 'token' | 'malformed' | 'foreign'

export function formOf(key: string): KeyForm {
  if (key.startsWith(clientTokenPrefix)) return 'token'
  const [, body, checksum] = keyFormat.exec(key) ?? []
  if (body === undefined) return ownPrefix.test(key) ? 'malformed' : 'foreign'
  return checksum === checksumOf(body) ? 'checked' : 'malformed'
}
