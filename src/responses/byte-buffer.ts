/** Bytes collected from chunks. Grows by doubling: neither many tiny chunks nor a few large ones make it slow or fat. */
export class ByteBuffer {
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

  /** The bytes from the first on, at most `end` of them. Valid until the next append. */
  peek(end = this.#length): Buffer {
    return this.#bytes.subarray(0, Math.min(end, this.#length))
  }

  /** All of the bytes; the buffer is empty from then on. */
  take(): Buffer {
    const taken = this.peek()
    this.#bytes = Buffer.alloc(0)
    this.#length = 0
    return taken
  }
}

/** Collects a body's bytes, and stops reading once there are more than `limit`. */
export async function collect(
  body: AsyncIterable<Buffer>,
  limit: number,
  onChunk: () => void = () => {},
): Promise<{ bytes: Buffer; isWhole: boolean }> {
  const collected = new ByteBuffer()
  for await (const chunk of body) {
    onChunk()
    if (collected.length + chunk.length > limit) return { bytes: collected.take(), isWhole: false }
    collected.append(chunk)
  }
  return { bytes: collected.take(), isWhole: true }
}
