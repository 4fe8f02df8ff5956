import type { Readable } from 'node:stream'

/** Initial buffer size, in bytes, if the length is unknown. */
const defaultExpectedBytes = 16 * 1024

interface ReadOptions {
  /** The expected length in bytes. */
  expected?: number | undefined
  onChunk?: () => void
}

/**
 * Reads a body into one buffer, which doubles as it grows: short pieces would take many times their size if they were
 * kept. Resolves to null once the body has more than `limit` bytes, and leaves the rest to the caller. Rejects when the
 * body breaks off.
 */
export function readBody(
  body: Readable,
  limit: number,
  { expected = defaultExpectedBytes, onChunk }: ReadOptions = {},
): Promise<Buffer<ArrayBuffer> | null> {
  const { promise, resolve, reject } = Promise.withResolvers<Buffer<ArrayBuffer> | null>()
  let bytes = Buffer.allocUnsafeSlow(Math.min(expected, limit))
  let length = 0
  const onData = (chunk: Buffer) => {
    onChunk?.()
    const end = length + chunk.length
    if (end > limit) {
      body.off('data', onData)
      return resolve(null)
    }
    if (end > bytes.length) {
      const larger = Buffer.allocUnsafeSlow(Math.min(Math.max(end, bytes.length * 2), limit))
      bytes.copy(larger, 0, 0, length)
      bytes = larger
    }
    chunk.copy(bytes, length)
    length = end
  }
  body.on('data', onData)
  body.once('end', () => resolve(bytes.subarray(0, length)))
  body.once('error', reject)
  body.once('close', () => {
    // The stack trace of this error is slow, so it is not created after an end.
    if (!body.readableEnded && !body.errored) reject(new Error('the body broke off'))
  })
  return promise
}
