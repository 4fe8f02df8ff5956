import type { Readable } from 'node:stream'
import { ByteBuffer } from '#platform/byte-buffer.ts'

/** Of an answer that is not long. */
const expectedBytes = 4096

/** Reads a body, and destroys it once it has more than `limit` bytes. Rejects when the body breaks off. */
export function readBody(
  body: Readable,
  limit: number,
  onChunk: () => void = () => {},
): Promise<{ bytes: Buffer; isWhole: boolean }> {
  const { promise, resolve, reject } = Promise.withResolvers<{ bytes: Buffer; isWhole: boolean }>()
  const collected = new ByteBuffer(expectedBytes, limit)
  body.on('data', (chunk: Buffer) => {
    onChunk()
    if (collected.append(chunk)) return
    resolve({ bytes: collected.take(), isWhole: false })
    body.destroy()
  })
  body.once('end', () => resolve({ bytes: collected.take(), isWhole: true }))
  body.once('error', reject)
  body.once('close', () => {
    // A close after `end` or `error` needs no error of its own, which would cost its stack trace.
    if (!body.readableEnded && !body.errored) reject(new Error('the body broke off'))
  })
  return promise
}
