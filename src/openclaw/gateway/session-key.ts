import { AppError } from '#errors/app-error.ts'

const maxSessionIdBytes = 200
const keyPrefix = 's-'

/**
 * The gateway's key for a session id of the API. The mapping is one to one. The key is hexadecimal, because the gateway
 * trims and lower-cases keys and accepts full `agent:…` keys: with readable keys, a caller could reach another session.
 * Throws AppError `invalid` for an id that is empty, longer than 200 bytes of UTF-8, or not well-formed Unicode;
 * `param` is the field of a body that has the id.
 */
export function sessionKey(sessionId: string, param?: string): string {
  if (sessionId === 'main') return 'main'
  const bytes = Buffer.from(sessionId, 'utf8')
  // A lone surrogate is encoded as U+FFFD, so two different ids would share a session.
  if (bytes.length === 0 || bytes.length > maxSessionIdBytes || !sessionId.isWellFormed()) {
    const rule = `A session id must have 1 to ${maxSessionIdBytes} bytes of UTF-8.`
    throw param === undefined
      ? new AppError('invalid_value', rule)
      : new AppError('invalid_value', `${param}: ${rule}`, { param })
  }
  return keyPrefix + bytes.toString('hex')
}

/** The inverse of `sessionKey`. */
export const apiSessionId = (key: string): string =>
  key === 'main' ? key : Buffer.from(key.slice(keyPrefix.length), 'hex').toString('utf8')

const apiKey = /^agent:main:(?:main|s-((?:[0-9a-f]{2}){1,200}))$/

/** The session id of the API for a full key of the gateway; null for sessions of channels and of the gateway itself. */
export function sessionIdOf(key: string): string | null {
  const match = apiKey.exec(key)
  if (!match) return null
  const id = apiSessionId(match[1] === undefined ? 'main' : keyPrefix + match[1])
  return id.isWellFormed() && key === `agent:main:${sessionKey(id)}` ? id : null
}
