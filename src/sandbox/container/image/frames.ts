/**
 * A frame of the protocol between the control plane and the files program: a letter, the length of the payload in four
 * bytes, and the payload. `head` is JSON; `data` is bytes of a file, up to an `end`.
 */
export interface Frame {
  kind: 'head' | 'data' | 'end'
  payload: Buffer
}

const letters = { head: 'h', data: 'd', end: 'e' } as const
const kinds = new Map(Object.entries(letters).map(([kind, letter]) => [letter.charCodeAt(0), kind as Frame['kind']]))
const prefixBytes = 5
/**
 * Enough for a list of ten thousand long names. A frame is held in memory, and an agent may have taken over the other
 * end.
 */
const maxBytes = 16 * 1024 * 1024

/** The bytes of a frame. */
export function frame(kind: Frame['kind'], payload: Buffer = Buffer.alloc(0)): Buffer {
  const prefix = Buffer.alloc(prefixBytes)
  prefix.write(letters[kind], 'latin1')
  prefix.writeUInt32BE(payload.length, 1)
  return Buffer.concat([prefix, payload])
}

export const headFrame = (head: unknown): Buffer => frame('head', Buffer.from(JSON.stringify(head)))

/**
 * The frames of a stream, which is read only on demand. Throws when the stream contains no frame, or ends within one.
 */
export async function* readFrames(source: AsyncIterable<Buffer>): AsyncGenerator<Frame, void> {
  let chunks: Buffer[] = []
  let length = 0
  let wanted = prefixBytes
  for await (const chunk of source) {
    chunks.push(chunk)
    length += chunk.length
    while (length >= wanted) {
      const bytes = Buffer.concat(chunks)
      const kind = kinds.get(bytes[0] ?? 0)
      const size = bytes.readUInt32BE(1)
      if (!kind || size > maxBytes) throw new Error('the other end of the stream sends no frames')
      wanted = prefixBytes + size
      chunks = [bytes]
      if (length < wanted) break
      yield { kind, payload: bytes.subarray(prefixBytes, wanted) }
      const rest = bytes.subarray(wanted)
      chunks = [rest]
      length = rest.length
      wanted = prefixBytes
    }
  }
  if (length > 0) throw new Error('the stream ended within a frame')
}
