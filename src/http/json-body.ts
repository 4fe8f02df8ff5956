import { isUtf8 } from 'node:buffer'
import { MIMEType } from 'node:util'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'
import { hasBody } from './body-deadlines.ts'
import { refusedJson } from './json-faults.ts'

/** More than any schema or setting needs, and too little to exhaust the stack of recursive code. */
const maxDepth = 200

/** The index of the quote that ends the string that begins at `start`. */
function endOfString(text: string, start: number): number {
  for (let end = text.indexOf('"', start + 1); end !== -1; end = text.indexOf('"', end + 1)) {
    let escapes = end
    while (text[escapes - 1] === '\\') escapes -= 1
    if ((end - escapes) % 2 === 0) return end
  }
  return text.length
}

/** Whether a JSON text nests lists and objects deeper than `maxDepth`. */
function isTooDeep(text: string): boolean {
  let depth = 0
  for (let index = 0; index < text.length; index += 1) {
    const character = text[index]
    if (character === '"') index = endOfString(text, index)
    else if (character === '{' || character === '[') depth += 1
    else if (character === '}' || character === ']') depth -= 1
    if (depth > maxDepth) return true
  }
  return false
}

/** In valid UTF-8, only an escape can stand for half of a surrogate pair. */
const surrogateEscape = /\\u[dD][89a-fA-F]/

/** Whether all text in a parsed body is Unicode: the database would replace half of a surrogate pair. */
function isWellFormed(value: unknown): boolean {
  if (typeof value === 'string') return value.isWellFormed()
  if (typeof value !== 'object' || value === null) return true
  return Object.entries(value).every(([key, part]) => key.isWellFormed() && isWellFormed(part))
}

/**
 * Returns a parser of JSON that refuses `__proto__` and `constructor.prototype`, text that is not Unicode, and nesting
 * deeper than 200 levels. The parser throws AppError `unsupported_json`, or `invalid_json`, which says where the text is
 * no JSON.
 */
export function jsonParser(app: FastifyInstance): (text: string) => unknown {
  const parse = app.getDefaultJsonParser('error', 'error')
  return (text) => {
    if (isTooDeep(text)) throw new AppError('unsupported_json', texts.tooDeep(maxDepth))
    let outcome: { error: Error | null; parsed?: unknown } | undefined
    void parse(undefined as never, text, (error, parsed) => {
      outcome = { error, parsed }
    })
    if (outcome?.error) throw refusedJson(text)
    if (surrogateEscape.test(text) && !isWellFormed(outcome?.parsed))
      throw new AppError('unsupported_json', texts.notUnicode)
    return outcome?.parsed
  }
}

/** The `charset` of a content type; null without one, and for a malformed type. */
function charsetOf(contentType = ''): string | null {
  try {
    return new MIMEType(contentType).params.get('charset')
  } catch {
    return null
  }
}

/** Why the body of a request cannot be read as it was sent: null when it can. */
function encodingFault({ headers }: FastifyRequest): string | null {
  const { 'content-encoding': encoding = 'identity', 'transfer-encoding': transfer = 'chunked' } = headers
  if (encoding.trim().toLowerCase() !== 'identity') return texts.compressedBody(encoding)
  if (transfer.trim().toLowerCase() !== 'chunked') return texts.transferEncoding(transfer)
  const charset = charsetOf(headers['content-type'])
  return charset === null || /^(utf-?8|us-ascii)$/i.test(charset) ? null : texts.foreignCharset(charset)
}

/**
 * Accepts only JSON bodies, in UTF-8, that `jsonParser` accepts: others are a 400, or a 415 for another content type
 * and for a body in another encoding. An empty body counts as no body; the schema says whether the route needs one.
 */
export function useJsonBodies(app: FastifyInstance): void {
  app.removeAllContentTypeParsers()
  app.addHook('preParsing', (request, _reply, payload, done) => {
    const fault = hasBody(request) ? encodingFault(request) : null
    done(fault === null ? null : new AppError('unsupported_encoding', fault), payload)
  })
  const parse = jsonParser(app)
  app.addContentTypeParser('application/json', { parseAs: 'buffer' }, (_request, body: Buffer, done) => {
    if (body.length === 0) return done(null, undefined)
    if (!isUtf8(body)) return done(new AppError('unsupported_json', texts.notUtf8))
    try {
      done(null, parse(body.toString('utf8')))
    } catch (error) {
      done(error as Error)
    }
  })
}
