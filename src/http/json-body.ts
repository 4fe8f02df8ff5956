import { isUtf8 } from 'node:buffer'
import type { FastifyInstance } from 'fastify'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'

/** No schema and no settings come near it; what walks a value by recursion later does not come near its stack's end. */
const maxDepth = 200

/** Where a JSON text's string ends that begins at `start`. */
function endOfString(text: string, start: number): number {
  for (let end = text.indexOf('"', start + 1); end !== -1; end = text.indexOf('"', end + 1)) {
    let escapes = end
    while (text[escapes - 1] === '\\') escapes -= 1
    if ((end - escapes) % 2 === 0) return end
  }
  return text.length
}

/** Whether lists and objects of a JSON text stand in one another more often than `maxDepth`. */
function isTooDeep(text: string): boolean {
  let depth = 0
  for (let at = 0; at < text.length; at += 1) {
    const character = text[at]
    if (character === '"') at = endOfString(text, at)
    else if (character === '{' || character === '[') depth += 1
    else if (character === '}' || character === ']') depth -= 1
    if (depth > maxDepth) return true
  }
  return false
}

/** Half of a surrogate pair may hide behind an escape only. */
const surrogateEscape = /\\u[dD][89a-fA-F]/

/** Whether all text in a parsed body is Unicode: half a surrogate pair would be stored as something else. */
function isWellFormed(value: unknown): boolean {
  if (typeof value === 'string') return value.isWellFormed()
  if (typeof value !== 'object' || value === null) return true
  return Object.entries(value).every(([key, part]) => key.isWellFormed() && isWellFormed(part))
}

/**
 * Parses JSON, without `__proto__` or `constructor.prototype`, whose texts are all Unicode, and not nested more than 200 levels
 * deep. The parser throws AppError `invalid`, or Fastify's own error for it.
 */
export function jsonParser(app: FastifyInstance): (text: string) => unknown {
  const parse = app.getDefaultJsonParser('error', 'error')
  return (text) => {
    if (isTooDeep(text)) throw new AppError('invalid', texts.tooDeep(maxDepth))
    let outcome: { error: Error | null; parsed?: unknown } | undefined
    void parse(undefined as never, text, (error, parsed) => {
      outcome = { error, parsed }
    })
    if (outcome?.error) throw outcome.error
    if (surrogateEscape.test(text) && !isWellFormed(outcome?.parsed)) throw new AppError('invalid', texts.notUnicode)
    return outcome?.parsed
  }
}

/**
 * Takes JSON bodies and no other, in UTF-8 and as `jsonParser` has them. An empty body is none; the schema says whether one
 * is needed. Anything else is a 400, or a 415 for another content type.
 */
export function useJsonBodies(app: FastifyInstance): void {
  app.removeAllContentTypeParsers()
  const parse = jsonParser(app)
  app.addContentTypeParser('application/json', { parseAs: 'buffer' }, (_request, body: Buffer, done) => {
    if (body.length === 0) return done(null, undefined)
    if (!isUtf8(body)) return done(new AppError('invalid', texts.notUtf8))
    try {
      done(null, parse(body.toString('utf8')))
    } catch (error) {
      done(error as Error)
    }
  })
}
