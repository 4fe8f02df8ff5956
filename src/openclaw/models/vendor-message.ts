import { isObject } from '#openclaw/json.ts'

const maxCharacters = 500

/** Keys of providers, including those that a provider has shortened itself. */
const keys = /\b(?:sk-|AIza)[\w*.-]+/g

const messageIn = (value: unknown): string | null => {
  if (!isObject(value)) return null
  if (typeof value.message === 'string') return value.message
  return messageIn(value.error)
}

const parse = (text: string): unknown => {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

/**
 * A model provider's message, from the body of its answer or from OpenClaw's text about it: without JSON, in one line,
 * without keys, at most 500 characters. Null if there is none.
 */
export function vendorMessage(text: string): string | null {
  const said = text
    .replace(/; Retry-After: [^;]*$/, '')
    .replace(/^\d{3}(?::? |$)/, '')
    .replace(/^Google Generative AI API error \(\d+\): /, '')
    .replace(/ \[code=\w+\]$/, '')
  const json = said.slice(Math.max(0, said.indexOf('{')))
  const message = messageIn(parse(json)) ?? (/^[<{[]/.test(said.trim()) ? '' : said)
  const line = message
    .replace(/\p{Cc}+/gu, ' ')
    .replace(keys, '…')
    .trim()
  return line === '' ? null : line.slice(0, maxCharacters)
}

const maxRetryAfterSeconds = 24 * 3600

/** The provider's `Retry-After`, which OpenClaw appends to the message of a refused request; undefined without one. */
export function vendorRetryAfter(text: string): number | undefined {
  const [, value] = /; Retry-After: (\d+(?:\.\d+)?) seconds?$/.exec(text) ?? []
  return value === undefined ? undefined : Math.min(Math.max(1, Math.ceil(Number(value))), maxRetryAfterSeconds)
}
