/**
 * Bytes collected from chunks. It grows by doubling, so that neither many small chunks nor a few large ones are slow,
 * and frees the memory that it leaves at once: a collection may come long after.
 */
export class ByteBuffer {
  readonly #limit: number
  #bytes: Buffer<ArrayBuffer>
  #length = 0

  /** With as much memory as is expected, in bytes. It takes no more than `limit`. */
  constructor(expected: number, limit: number) {
    this.#bytes = Buffer.allocUnsafeSlow(expected)
    this.#limit = limit
  }

  /** Whether there was room for the chunk: one that would exceed the limit is not appended. */
  append(chunk: Buffer): boolean {
    const needed = this.#length + chunk.length
    if (needed > this.#limit) return false
    if (needed > this.#bytes.length) {
      const larger = Buffer.allocUnsafeSlow(Math.min(Math.max(needed, this.#bytes.length * 2), this.#limit))
      this.#bytes.copy(larger, 0, 0, this.#length)
      this.#bytes.buffer.transfer(0)
      this.#bytes = larger
    }
    chunk.copy(this.#bytes, this.#length)
    this.#length = needed
    return true
  }

  /** Returns all bytes and empties the buffer. */
  take(): Buffer<ArrayBuffer> {
    const taken = this.#bytes.subarray(0, this.#length)
    this.#bytes = Buffer.allocUnsafeSlow(0)
    this.#length = 0
    return taken
  }
}
