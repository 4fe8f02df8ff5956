import { hash } from 'node:crypto'
import { promisify } from 'node:util'
import { brotliCompress, constants } from 'node:zlib'
import type { FastifyReply, FastifyRequest } from 'fastify'

const compress = promisify(brotliCompress)

/** Compresses almost as well as the highest quality in a tenth of the time: a second for 5 MB. */
const quality = 5

/** Sends one large script. Compresses it once for all browsers, and answers 304 to a browser that has it. */
export function createScriptSender() {
  let prepared: { etag: string; compressed: Promise<Buffer> } | undefined

  return async (text: string, request: FastifyRequest, reply: FastifyReply): Promise<string | Buffer> => {
    prepared ??= {
      etag: `"${hash('sha256', text)}"`,
      compressed: compress(text, { params: { [constants.BROTLI_PARAM_QUALITY]: quality } }),
    }
    const { etag, compressed } = prepared
    reply.header('etag', etag).header('vary', 'accept-encoding')
    if (request.headers['if-none-match'] === etag) {
      reply.code(304)
      return ''
    }
    if (!/\bbr\b/.test(String(request.headers['accept-encoding']))) return text
    const body = await compressed
    reply.header('content-encoding', 'br').header('content-length', body.length)
    return body
  }
}
