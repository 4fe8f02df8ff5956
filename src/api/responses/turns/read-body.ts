import type { Readable } from 'node:stream'

/**
 * Bytes collected from chunks. It grows by doubling, so that neither many small chunks nor a few large ones are slow.
 */
class ByteBuffer {
  #bytes = Buffer.alloc(0)
  #length = 0

  get length(): number {
    return this.#length
  }

  append(chunk: Buffer): void {
    const needed = this.#length + chunk.length
    if (needed > this.#bytes.length) {
      const larger = Buffer.allocUnsafe(Math.max(needed, this.#bytes.length * 2))
      this.#bytes.copy(larger, 0, 0, this.#length)
      this.#bytes = larger
    }
    chunk.copy(this.#bytes, this.#length)
    this.#length = needed
  }

  /** Returns all bytes and empties the buffer. */
  take(): Buffer {
    const taken = this.#bytes.subarray(0, this.#length)
    this.#bytes = Buffer.alloc(0)
    this.#length = 0
    return taken
  }
}

/** Reads a body, and destroys it once it has more than `limit` bytes. Rejects when the body breaks off. */
export function readBody(
  body: Readable,
  limit: number,
  onChunk: () => void = () => {},
): Promise<{ bytes: Buffer; isWhole: boolean }> {
  const { promise, resolve, reject } = Promise.withResolvers<{ bytes: Buffer; isWhole: boolean }>()
  const collected = new ByteBuffer()
  body.on('data', (chunk: Buffer) => {
    onChunk()
    if (collected.length + chunk.length <= limit) return collected.append(chunk)
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
