import type { IncomingMessage } from 'node:http'
import type { CallBody } from './call.ts'

/** More than the part of a request before its last messages, unless these are long. */
const maxAheadBytes = 256 * 1024

/** The client has sent more than the limit of a call. */
export class BodyTooLarge extends Error {
  override name = 'BodyTooLarge'
}

export interface ClientBody extends CallBody {
  /** The body as it comes, including the pieces that were read ahead. Throws BodyTooLarge. */
  chunks(): AsyncGenerator<Buffer>
}

/**
 * The body of a request, of at most `maxBytes`. The connection stays open if the body is not read to its end, so that
 * the client gets an answer.
 */
export function readBody(request: IncomingMessage, maxBytes: number, onChunk: (bytes: Buffer) => void): ClientBody {
  const source = request.iterator({ destroyOnReturn: false }) as AsyncIterator<Buffer>
  const length = Number(request.headers['content-length'] ?? Number.NaN)
  const ahead: Buffer[] = []
  let bytes = 0
  let hasEnded = false

  async function next(): Promise<Buffer | null> {
    const { done, value } = hasEnded ? { done: true, value: undefined } : await source.next()
    if (done || !value) {
      hasEnded = true
      return null
    }
    bytes += value.length
    if (bytes > maxBytes) throw new BodyTooLarge('the body of the call is too large')
    onChunk(value)
    return value
  }

  return {
    length: Number.isNaN(length) ? null : length,
    hasEnded: () => hasEnded,
    async readAhead(isEnough) {
      while (bytes < maxAheadBytes && !isEnough()) {
        const chunk = await next()
        if (!chunk) return
        ahead.push(chunk)
      }
    },
    async *chunks() {
      for (let chunk = ahead.shift() ?? (await next()); chunk; chunk = ahead.shift() ?? (await next())) yield chunk
    },
  }
}
