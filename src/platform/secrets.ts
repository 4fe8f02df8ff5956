import { createCipheriv, createDecipheriv, createSecretKey, hkdfSync, type KeyObject, randomBytes } from 'node:crypto'

const keyBytes = 32
const randomNonceBytes = 10
const nonceBytes = randomNonceBytes + 2
const tagBytes = 16
const maxCount = 0xffff
const keyIdBytes = 4
const algorithm = 'aes-256-gcm'

/**
 * The sealing context of a value: table/row/column, with the parts of a primary key joined by dots, or the kind of a
 * value that only clients keep. The names of columns are part of the type, so that the compiler refuses a context that `admin
 * reseal` (`database/sealed-columns.ts`) would not find.
 */
export type Place =
  | `${string}/${string}/sealed_${string}`
  | `installation/${string}/value`
  | 'client_tokens'
  | 'approval_links'
  | `compactions/${string}`

/** Seals secrets for the database, and unseals them. */
export interface Vault {
  /** The ids of the accepted keys. The first key encrypts; all keys decrypt. */
  readonly keyIds: readonly [string, ...string[]]
  /** The value can be unsealed only in the same context. */
  seal(text: string, place: Place): string
  /** Throws if the value was sealed with an unknown key, was sealed for another context, or was altered. */
  unseal(sealed: string, place: Place): string
}

/** The form of a sealed value, `v1.` + key id + `.` + base64url(nonce ‖ tag ‖ text): nonce and tag take 38 characters. */
export const sealedForm = /^v1\.[0-9a-f]{8}\.[A-Za-z0-9_-]{38,}$/

/** The prefix of all values sealed by a key. */
export const sealedPrefix = (keyId: string): string => `v1.${keyId}.`

const derive = (key: Buffer, label: string, length: number) => Buffer.from(hkdfSync('sha256', key, '', label, length))

/** The id of a key, a one-way digest: 8 hexadecimal digits. */
export const keyIdOf = (key: Buffer): string => derive(key, 'chowder key id', keyIdBytes).toString('hex')

/**
 * Returns a function that makes nonces: 10 random bytes and a count of 2 bytes, with new random bytes after 65,536
 * nonces. Two nonces of one key must never be equal. Nonces of 12 random bytes reach NIST's bound, a chance of 2⁻³² of
 * two equal ones, after 2³² seals; these reach it after 2⁴⁰.
 */
function createNonces(): () => Buffer {
  let nonce = Buffer.alloc(0)
  let count = maxCount
  return () => {
    count += 1
    if (count > maxCount) {
      nonce = randomBytes(nonceBytes)
      count = 0
    }
    nonce.writeUInt16BE(count, randomNonceBytes)
    return nonce
  }
}

/** AES-256-GCM with the context as additional authenticated data. */
function createCipher(key: Buffer) {
  const secret: KeyObject = createSecretKey(key) // created once: creating it takes as long as sealing a short text
  const nextNonce = createNonces()
  return {
    encrypt(text: string, place: string): string {
      const nonce = nextNonce()
      const cipher = createCipheriv(algorithm, secret, nonce).setAAD(Buffer.from(place))
      const sealed = Buffer.concat([cipher.update(text, 'utf8'), cipher.final()])
      return Buffer.concat([nonce, cipher.getAuthTag(), sealed]).toString('base64url')
    },
    decrypt(encoded: string, place: string): string {
      const bytes = Buffer.from(encoded, 'base64url')
      const decipher = createDecipheriv(algorithm, secret, bytes.subarray(0, nonceBytes), { authTagLength: tagBytes })
        .setAAD(Buffer.from(place))
        .setAuthTag(bytes.subarray(nonceBytes, nonceBytes + tagBytes))
      return Buffer.concat([decipher.update(bytes.subarray(nonceBytes + tagBytes)), decipher.final()]).toString('utf8')
    },
  }
}

/** A key with the ciphers of its subkeys, one for each table, created on first use. */
function createSealer(key: Buffer) {
  if (key.length !== keyBytes) throw new Error(`the secret key must have ${keyBytes} bytes`)
  const ofTables = new Map<string, ReturnType<typeof createCipher>>() // as many as there are tables
  return {
    id: keyIdOf(key),
    of(place: Place) {
      const table = place.split('/', 1)[0] ?? place
      const known = ofTables.get(table)
      if (known) return known
      const made = createCipher(derive(key, `chowder/${table}`, keyBytes))
      ofTables.set(table, made)
      return made
    },
  }
}

/** Creates a vault of keys of 32 bytes. The first one encrypts; all decrypt. */
export function createVault(keys: Buffer | readonly Buffer[]): Vault {
  const [first, ...others] = (Buffer.isBuffer(keys) ? [keys] : keys).map(createSealer)
  if (!first) throw new Error('a vault needs a secret key')
  const sealers = [first, ...others]

  return {
    keyIds: [first.id, ...others.map(({ id }) => id)],
    seal: (text, place) => sealedPrefix(first.id) + first.of(place).encrypt(text, place),
    unseal(sealed, place) {
      const [version, keyId = '', encoded = '', ...more] = sealed.split('.')
      if (version !== 'v1' || more.length > 0) throw new Error(`a sealed value of an unknown version at ${place}`)
      const sealer = sealers.find(({ id }) => id === keyId)
      if (!sealer) {
        throw new Error(
          `the value at ${place} cannot be unsealed: it was sealed with the secret key ` +
            `${keyId.slice(0, 2 * keyIdBytes)}, and this process accepts ${sealers.map(({ id }) => id).join(', ')}`,
        )
      }
      try {
        return sealer.of(place).decrypt(encoded, place)
      } catch (cause) {
        throw new Error(`the sealed value at ${place} cannot be unsealed with the accepted secret keys`, { cause })
      }
    },
  }
}
