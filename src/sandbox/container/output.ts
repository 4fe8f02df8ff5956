/** A part of a program's output. */
export interface Output {
  stream: 'stdout' | 'stderr'
  bytes: Buffer
}

const headerBytes = 8
const stderrNumber = 2

/** Parses the output of a program without a terminal, in which dockerd combines both streams. Reads only on demand. */
export async function* readOutput(source: AsyncIterable<Buffer>): AsyncGenerator<Output, void> {
  let header = Buffer.alloc(0)
  let left = 0
  let stream: Output['stream'] = 'stdout'
  for await (let chunk of source) {
    while (chunk.length > 0) {
      if (left === 0) {
        const missing = headerBytes - header.length
        header = Buffer.concat([header, chunk.subarray(0, missing)])
        chunk = chunk.subarray(missing)
        if (header.length < headerBytes) break
        stream = header[0] === stderrNumber ? 'stderr' : 'stdout'
        left = header.readUInt32BE(4)
        header = Buffer.alloc(0)
        continue
      }
      const bytes = chunk.subarray(0, left)
      left -= bytes.length
      chunk = chunk.subarray(bytes.length)
      yield { stream, bytes }
    }
  }
}
