import type { Readable } from 'node:stream'
import { MIMEType } from 'node:util'
import { errorCodes, type FastifyInstance, type FastifyRequest } from 'fastify'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { parseJsonBytes } from '#platform/json/thread.ts'
import { readBody } from '#platform/read-body.ts'
import { hasBody } from './body-deadlines.ts'

/**
 * Bounds of every body. The depth is more than any schema or setting needs, and too little to exhaust the stack of
 * recursive code. The number of values exceeds that of a conversation of a thousand turns, and takes some ten ms to
 * build and validate.
 */
export const bodyBounds = { depth: 200, values: 50_000 }

/** The `charset` of a content type; null without one, and for a malformed type. */
function charsetOf(contentType = ''): string | null {
  try {
    return new MIMEType(contentType).params.get('charset')
  } catch {
    return null
  }
}

/** The reason why the body of a request cannot be read; null if it can. */
function encodingFault({ headers }: FastifyRequest): string | null {
  const { 'content-encoding': encoding = 'identity', 'transfer-encoding': transfer = 'chunked' } = headers
  if (encoding.trim().toLowerCase() !== 'identity') return texts.compressedBody(encoding)
  if (transfer.trim().toLowerCase() !== 'chunked') return texts.transferEncoding(transfer)
  const charset = charsetOf(headers['content-type'])
  return charset === null || /^(utf-?8|us-ascii)$/i.test(charset) ? null : texts.foreignCharset(charset)
}

/**
 * Reads the body of a request, within the limit of its route. Fastify itself would keep the pieces, and join them at
 * the end. Throws FastifyError in the same cases: for a body that is too large or of another length than announced, and
 * with status 400 for one that breaks off.
 */
async function readRequestBody({ headers, routeOptions }: FastifyRequest, payload: Readable): Promise<Buffer> {
  const { bodyLimit = 0 } = routeOptions
  const announced = headers['content-length'] === undefined ? undefined : Number(headers['content-length'])
  if (announced !== undefined && announced > bodyLimit) throw new errorCodes.FST_ERR_CTP_BODY_TOO_LARGE()
  const body = await readBody(payload, bodyLimit, { expected: announced }).catch((error: Error) => {
    throw Object.assign(error, { statusCode: 400 })
  })
  if (body === null) throw new errorCodes.FST_ERR_CTP_BODY_TOO_LARGE()
  if (announced !== undefined && body.length !== announced) throw new errorCodes.FST_ERR_CTP_INVALID_CONTENT_LENGTH()
  return body
}

/**
 * Accepts only JSON bodies, in UTF-8, that `parseJson` accepts within `bodyBounds`: others are a 400, or a 415 for
 * another content type or another encoding. An empty body counts as no body; the schema decides whether the route needs
 * one.
 */
export function useJsonBodies(app: FastifyInstance): void {
  app.removeAllContentTypeParsers()
  app.addHook('preParsing', (request, _reply, payload, done) => {
    const fault = hasBody(request) ? encodingFault(request) : null
    done(fault === null ? null : new AppError('unsupported_media', fault), payload)
  })
  app.addContentTypeParser('application/json', async (request: FastifyRequest, payload: Readable) => {
    const body = await readRequestBody(request, payload)
    return body.length === 0 ? undefined : parseJsonBytes(body, bodyBounds)
  })
}
