import { createCipheriv, createDecipheriv, createSecretKey, randomBytes } from 'node:crypto'

const randomNonceBytes = 10
const nonceBytes = randomNonceBytes + 2
const tagBytes = 16
const maxCount = 0xffff

/** Seals secrets for the database, and unseals them. */
export interface Vault {
  /** Returns `v1.` + base64url(nonce ‖ tag ‖ text). `place` is table/row/column: the value is unsealed only there. */
  seal(text: string, place: string): string
  /** Throws when the value was sealed with another key or for another place, or was altered. */
  unseal(sealed: string, place: string): string
}

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

/** AES-256-GCM under a 32-byte key, with the place as additional authenticated data. */
export function createVault(key: Buffer): Vault {
  if (key.length !== 32) throw new Error('the secret key must have 32 bytes')
  const secret = createSecretKey(key) // created once: this takes as long as sealing a short text
  const nextNonce = createNonces()
  return {
    seal(text, place) {
      const nonce = nextNonce()
      const cipher = createCipheriv('aes-256-gcm', secret, nonce).setAAD(Buffer.from(place))
      const sealed = Buffer.concat([cipher.update(text, 'utf8'), cipher.final()])
      return `v1.${Buffer.concat([nonce, cipher.getAuthTag(), sealed]).toString('base64url')}`
    },
    unseal(sealed, place) {
      const [version, encoded] = sealed.split('.')
      if (version !== 'v1' || !encoded) throw new Error(`a sealed value of an unknown version at ${place}`)
      const bytes = Buffer.from(encoded, 'base64url')
      const decipher = createDecipheriv('aes-256-gcm', secret, bytes.subarray(0, nonceBytes), {
        authTagLength: tagBytes,
      })
        .setAAD(Buffer.from(place))
        .setAuthTag(bytes.subarray(nonceBytes, nonceBytes + tagBytes))
      try {
        return Buffer.concat([decipher.update(bytes.subarray(nonceBytes + tagBytes)), decipher.final()]).toString(
          'utf8',
        )
      } catch (cause) {
        throw new Error(`the sealed value at ${place} cannot be unsealed with this CHOWDER_SECRET_KEY`, { cause })
      }
    },
  }
}
