import { isObject } from '#openclaw/json.ts'
import { createMask } from '#platform/mask.ts'

/** Matches the names of settings with credentials: of channels, of skills and of OpenClaw itself. */
const credential =
  /token|secret|pass(word|phrase)|credential|authorization|cookie|(private|api)[-_]?key|service[-_]?account|^(env|headers)$/i

/** A value that is JSON itself, such as Google's service accounts. */
function parsed(text: string): unknown {
  if (!text.trimStart().startsWith('{')) return null
  try {
    return JSON.parse(text)
  } catch {
    return null
  }
}

/**
 * The credentials in settings, found by the settings' names. Searches every depth, because a channel may have several
 * accounts. Callers limit the size of the settings.
 */
export function credentialsIn(value: unknown, isCredential = false): string[] {
  if (typeof value === 'string') return isCredential ? [value, ...credentialsIn(parsed(value))] : []
  if (Array.isArray(value)) return value.flatMap((item) => credentialsIn(item, isCredential))
  if (!isObject(value)) return []
  return Object.entries(value).flatMap(([key, inner]) => credentialsIn(inner, isCredential || credential.test(key)))
}

/**
 * Masks a channel's credentials, and those in URLs, in a gateway's message about it. Errors of platforms quote
 * requests, and a caller who may read a channel's status need not be allowed to know its credentials.
 */
export const withoutCredentials = (message: string, settings: Record<string, unknown>): string =>
  createMask(credentialsIn(settings))(message, false).replace(/:\/\/[^\s/?#@]+@/g, '://***@')
