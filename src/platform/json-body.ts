import { isUtf8 } from 'node:buffer'
import type { FastifyInstance } from 'fastify'
import { AppError } from './errors.ts'
import { texts } from './texts.ts'

/** Half of a surrogate pair may hide behind an escape only. */
const surrogateEscape = /\\u[dD][89a-fA-F]/

/** Whether all text in a parsed body is Unicode: half a surrogate pair would be stored as something else. */
function isWellFormed(value: unknown): boolean {
  if (typeof value === 'string') return value.isWellFormed()
  if (typeof value !== 'object' || value === null) return true
  return Object.entries(value).every(([key, part]) => key.isWellFormed() && isWellFormed(part))
}

/**
 * Takes JSON bodies and no other: in UTF-8, without `__proto__` or `constructor.prototype`. An empty body is none; the
 * schema says whether one is needed. Anything else is a 400, or a 415 for another content type.
 */
export function useJsonBodies(app: FastifyInstance): void {
  app.removeAllContentTypeParsers()
  const parseJson = app.getDefaultJsonParser('error', 'error')
  app.addContentTypeParser('application/json', { parseAs: 'buffer' }, (request, body: Buffer, done) => {
    if (body.length === 0) return done(null, undefined)
    if (!isUtf8(body)) return done(new AppError('invalid', texts.notUtf8))
    const text = body.toString('utf8')
    void parseJson(request, text, (error, parsed) => {
      const isText = error || !surrogateEscape.test(text) || isWellFormed(parsed)
      done(isText ? error : new AppError('invalid', texts.notUnicode), parsed)
    })
  })
}
