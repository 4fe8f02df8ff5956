import { randomBytes } from 'node:crypto'

export type SecretKind =
  | 'provider key'
  | 'channel secret'
  | 'skill secret'
  | 'override secret'
  | 'API key'
  | 'sign-up token'
  | 'billing secret'
  | 'gateway token'
  | 'relay token'
  | 'secret key'
  | 'password'

export interface Secret {
  kind: SecretKind
  value: string
  /** The instance that alone may hold it; null for none in particular. */
  instanceId: string | null
}

/** A shorter value is a word that stands in many places, and no test's secret. */
const minCharacters = 12
const randomDigits = 12
/** Each encoding writes them in another way. Provider keys may have them, which may have neither quotes nor spaces. */
const telling = '\\+/%'

const known = new Map<string, Secret>()

/** All secrets of this process so far: what tests have made, sent and been shown. */
export const knownSecrets = (): readonly Secret[] => [...known.values()]

/** Has the searches look for a secret from now on. Of one that is known the kind of the first time counts. */
export function noteSecret(kind: SecretKind, value: string, instanceId: string | null = null): void {
  if (value.length >= minCharacters && !known.has(value)) known.set(value, { kind, value, instanceId })
}

/** A new secret that the searches look for. A `suffix` of its own is for one whose form a platform checks. */
export function newSecret(kind: SecretKind, prefix = '', suffix = telling): string {
  const value = `${prefix}canary-${randomBytes(randomDigits).toString('hex')}${suffix}`
  noteSecret(kind, value)
  return value
}

const secretField = /token|secret|password|api_?keys?$|authorization|^env$/i

/** The texts within a value, of the fields whose names say that they are secrets. */
function secretsIn(value: unknown, isSecret: boolean): string[] {
  if (typeof value === 'string') return isSecret ? [value] : []
  if (typeof value !== 'object' || value === null) return []
  return Object.entries(value).flatMap(([name, part]) => secretsIn(part, isSecret || secretField.test(name)))
}

const kindsByPath: [RegExp, SecretKind][] = [
  [/^\/v1\/organization/, 'provider key'],
  [/\/channels\//, 'channel secret'],
  [/\/skills/, 'skill secret'],
  [/^\/v1\/instances/, 'override secret'],
]

/** Notes the secrets in a call of the API. */
export function noteRequest(path: string, headers: Record<string, string>, body: unknown): void {
  const kind = kindsByPath.find(([pattern]) => pattern.test(path))?.[1]
  if (kind !== undefined) for (const value of secretsIn(body, false)) noteSecret(kind, value)
  const [, key] = /^Bearer (.*)$/.exec(headers.authorization ?? '') ?? []
  if (key !== undefined) noteSecret('API key', key)
  if (headers['x-signup-token'] !== undefined) noteSecret('sign-up token', headers['x-signup-token'])
}

/** More is not kept: it is from a soak, and the rest is like it. */
const maxKept = 64 * 1024 * 1024
/** An answer may have megabytes, and secrets are not of that length. */
const maxCharacters = 1024 * 1024
const shownOnce = /("(?:api_key|raw_key|client_token)": ?")(chd_[^"]+)/g

const kept = new Map<string, string[]>()
let keptCharacters = 0

/** Keeps a text for the next search, which names `place` for it. */
export function keepText(place: string, text: string): void {
  if (keptCharacters + text.length > maxKept) return
  keptCharacters += text.length
  const texts = kept.get(place)
  if (texts) texts.push(text)
  else kept.set(place, [text])
}

/** Keeps an answer of the API, and notes the keys that it shows: its fields for a new key alone may have one. */
export function noteAnswer(text: string): void {
  if (text.length > maxCharacters) return
  const rest = text.replace(shownOnce, (_, field: string, key: string) => {
    noteSecret('API key', key)
    return field
  })
  keepText('answers', rest)
}

/** The kept texts since the last call, by place. */
export function takeTexts(): Record<string, string> {
  const texts = Object.fromEntries([...kept].map(([place, of]) => [place, of.join('\n')]))
  kept.clear()
  keptCharacters = 0
  return texts
}
