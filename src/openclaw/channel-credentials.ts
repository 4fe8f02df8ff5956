import { isObject } from './json.ts'

/** OpenClaw's keys for credentials, whatever the channel. */
const credential = /token|secret|password|privatekey|apikey|serviceaccount/i
/** What is shorter would take ordinary words with it, and is no credential of any platform. */
const shortest = 6
const hidden = '***'

/** At every depth: a channel may have several accounts. Settings are bounded. */
function credentialsIn(value: unknown, isCredential: boolean): string[] {
  if (typeof value === 'string') return isCredential && value.length >= shortest ? [value] : []
  if (Array.isArray(value)) return value.flatMap((item) => credentialsIn(item, isCredential))
  if (!isObject(value)) return []
  return Object.entries(value).flatMap(([key, inner]) => credentialsIn(inner, isCredential || credential.test(key)))
}

/**
 * What a gateway says of a channel, without the channel's credentials and without those in addresses: who may read its
 * status need not know them, and errors of platforms quote what they were asked.
 */
export function withoutCredentials(words: string, settings: Record<string, unknown>): string {
  const forms = credentialsIn(settings, false).flatMap((secret) => [secret, encodeURIComponent(secret)])
  const longestFirst = forms.toSorted((one, other) => other.length - one.length)
  return longestFirst
    .reduce((text, secret) => text.replaceAll(secret, hidden), words)
    .replace(/:\/\/[^\s/?#@]+@/g, `://${hidden}@`)
}
