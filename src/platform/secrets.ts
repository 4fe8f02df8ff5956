import { createCipheriv, createDecipheriv, createSecretKey, hkdfSync, type KeyObject, randomBytes } from 'node:crypto'

const keyBytes = 32
const randomNonceBytes = 10
const nonceBytes = randomNonceBytes + 2
const tagBytes = 16
const maxCount = 0xffff
const keyIdBytes = 4
const algorithm = 'aes-256-gcm'

/**
 * Where a value is sealed for: table/row/column, the parts of a primary key joined by dots, or the tokens that are
 * handed out and stored nowhere. The names of columns are part of the type, so that the compiler refuses a place which
 * the rotation of the key (`database/sealed-columns.ts`) would not find.
 */
export type Place = `${string}/${string}/sealed_${string}` | `installation/${string}/value` | 'client_tokens'

/** Seals secrets for the database, and unseals them. */
export interface Vault {
  /** The ids of the accepted keys. The first key seals, each unseals. */
  readonly keyIds: readonly [string, ...string[]]
  /** The value can be unsealed only at the same place. */
  seal(text: string, place: Place): string
  /** Throws when the value was sealed with a key that is not accepted or for another place, or was altered. */
  unseal(sealed: string, place: Place): string
}

/**
 * How values are sealed. `v2.` + key id + `.` + base64url(nonce ‖ tag ‖ text), with a subkey of the key for each table.
 * `v1.` + base64url(nonce ‖ tag ‖ text), with the key itself: the version of Chowder before reads nothing else.
 */
export type SealFormat = 'v1' | 'v2'

/** The form of a sealed value: its nonce and tag alone take 38 characters. */
export const sealedForm = /^(v1|v2\.[0-9a-f]{8})\.[A-Za-z0-9_-]{38,}$/

/** What all values begin with that a key has sealed in the current format. */
export const sealedPrefix = (keyId: string): string => `v2.${keyId}.`

const derive = (key: Buffer, label: string, length: number) => Buffer.from(hkdfSync('sha256', key, '', label, length))

/** The name of a key, which tells nothing of it: 8 hexadecimal digits. */
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

/** AES-256-GCM with the place as additional authenticated data. */
function createCipher(key: Buffer) {
  const secret: KeyObject = createSecretKey(key) // created once: this takes as long as sealing a short text
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

/** A key: its own cipher, and those of its subkeys, which are made when they are first needed. */
function createSealer(key: Buffer) {
  if (key.length !== keyBytes) throw new Error(`the secret key must have ${keyBytes} bytes`)
  const own = createCipher(key)
  const ofTables = new Map<string, typeof own>() // as many as there are tables
  return {
    id: keyIdOf(key),
    own,
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

type Sealer = ReturnType<typeof createSealer>

/** A vault whose keys can be exchanged while it is used. */
export interface VaultWithKeys extends Vault {
  /** Accepts these keys alone from now on. The first one seals. */
  use(keys: readonly Buffer[], format?: SealFormat): void
}

/** Creates a vault of keys of 32 bytes. The first one seals; each unseals what it has sealed, in either format. */
export function createVault(keys: Buffer | readonly Buffer[], format: SealFormat = 'v2'): VaultWithKeys {
  let sealers: readonly [Sealer, ...Sealer[]]
  let sealsAs = format

  function use(next: readonly Buffer[], nextFormat: SealFormat = 'v2'): void {
    const [first, ...rest] = next.map(createSealer)
    if (!first) throw new Error('a vault needs a secret key')
    sealers = [first, ...rest]
    sealsAs = nextFormat
  }

  /** The ciphers that may have sealed a value, and its encoded part. */
  function readHead(sealed: string, place: Place) {
    const [version, ...parts] = sealed.split('.')
    if (version === 'v1' && parts.length === 1)
      return { encoded: parts[0] ?? '', ciphers: sealers.map(({ own }) => own) }
    if (version !== 'v2' || parts.length !== 2) throw new Error(`a sealed value of an unknown version at ${place}`)
    const [keyId = '', encoded = ''] = parts
    const sealer = sealers.find(({ id }) => id === keyId)
    if (!sealer) throw new Error(notAccepted(place, keyId))
    return { encoded, ciphers: [sealer.of(place)] }
  }

  const notAccepted = (place: Place, keyId: string) =>
    `the value at ${place} cannot be unsealed: it was sealed with the secret key ${keyId.slice(0, 2 * keyIdBytes)}, ` +
    `and this process accepts ${sealers.map(({ id }) => id).join(', ')}`

  use(Buffer.isBuffer(keys) ? [keys] : keys, format)
  return {
    use,
    get keyIds() {
      const [first, ...rest] = sealers
      return [first.id, ...rest.map(({ id }) => id)] as const
    },
    seal(text, place) {
      const [sealer] = sealers
      if (sealsAs === 'v1') return `v1.${sealer.own.encrypt(text, place)}`
      return sealedPrefix(sealer.id) + sealer.of(place).encrypt(text, place)
    },
    unseal(sealed, place) {
      const { encoded, ciphers } = readHead(sealed, place)
      let cause: unknown
      for (const cipher of ciphers) {
        try {
          return cipher.decrypt(encoded, place)
        } catch (error) {
          cause = error
        }
      }
      throw new Error(`the sealed value at ${place} cannot be unsealed with the accepted secret keys`, { cause })
    },
  }
}
