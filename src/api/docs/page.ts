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

const style = `:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }
h2.code, code, pre { font-family: ui-monospace, monospace; overflow-wrap: anywhere }
h2.code { font-size: 1.1rem }
pre, table { overflow-x: auto }
pre { padding: 0.5rem; background: #8882 }
table { display: block; border-collapse: collapse }
th, td { text-align: left; vertical-align: top; padding: 0.2rem 0.6rem; border: 1px solid #8884; min-width: 6rem }
img { max-width: 100% }
:target { background: #fc04 }`

/** A page of plain HTML, which loads nothing from another host. */
export const htmlPage = (title: string, body: string): string => `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${title}</title>
<style>${style}</style>
${body}
</html>
`
