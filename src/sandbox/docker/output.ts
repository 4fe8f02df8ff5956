/** A piece of what a program has written. */
export interface Output {
  stream: 'stdout' | 'stderr'
  bytes: Buffer
}

const headBytes = 8
const stderrNumber = 2

/** What dockerd sends of a program without a terminal, both streams in one, read no faster than it is taken. */
export async function* readOutput(source: AsyncIterable<Buffer>): AsyncGenerator<Output, void> {
  let head = Buffer.alloc(0)
  let left = 0
  let stream: Output['stream'] = 'stdout'
  for await (let chunk of source) {
    while (chunk.length > 0) {
      if (left === 0) {
        const missing = headBytes - head.length
        head = Buffer.concat([head, chunk.subarray(0, missing)])
        chunk = chunk.subarray(missing)
        if (head.length < headBytes) break
        stream = head[0] === stderrNumber ? 'stderr' : 'stdout'
        left = head.readUInt32BE(4)
        head = Buffer.alloc(0)
        continue
      }
      const bytes = chunk.subarray(0, left)
      left -= bytes.length
      chunk = chunk.subarray(bytes.length)
      yield { stream, bytes }
    }
  }
}
