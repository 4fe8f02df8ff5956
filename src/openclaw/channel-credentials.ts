import { isObject } from './json.ts'

/** Matches the names of settings that hold credentials, in every channel. */
const credential = /token|secret|password|privatekey|apikey|serviceaccount/i
/** Shorter values are no credentials on any platform, and hiding them would hide ordinary words. */
const minCredentialCharacters = 6
const hidden = '***'

/** Searches every depth, because a channel may have several accounts. Callers limit the size of the settings. */
function credentialsIn(value: unknown, isCredential: boolean): string[] {
  if (typeof value === 'string') return isCredential && value.length >= minCredentialCharacters ? [value] : []
  if (Array.isArray(value)) return value.flatMap((item) => credentialsIn(item, isCredential))
  if (!isObject(value)) return []
  return Object.entries(value).flatMap(([key, inner]) => credentialsIn(inner, isCredential || credential.test(key)))
}

/**
 * Hides a channel's credentials, and those in URLs, in a gateway's message about it. Errors of platforms quote
 * requests, and callers who may read a channel's status may not be allowed to know its credentials.
 */
export function withoutCredentials(message: string, settings: Record<string, unknown>): string {
  const forms = credentialsIn(settings, false).flatMap((secret) => [secret, encodeURIComponent(secret)])
  const longestFirst = forms.toSorted((one, other) => other.length - one.length)
  return longestFirst
    .reduce((text, secret) => text.replaceAll(secret, hidden), message)
    .replace(/:\/\/[^\s/?#@]+@/g, `://${hidden}@`)
}
