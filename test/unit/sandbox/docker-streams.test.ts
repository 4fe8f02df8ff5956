import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { type Frame, frame, readFrames } from '#sandbox/container/image/frames.ts'
import { type Output, readOutput } from '#sandbox/container/output.ts'

const bytes = fc.uint8Array({ maxLength: 40 }).map((array) => Buffer.from(array))
/** Where a stream is cut into chunks. */
const cuts = fc.array(fc.nat(300), { maxLength: 20 })

async function* inChunks(whole: Buffer, at: number[]): AsyncGenerator<Buffer, void> {
  let from = 0
  for (const to of [...at.filter((cut) => cut < whole.length).sort((a, b) => a - b), whole.length]) {
    yield whole.subarray(from, to)
    from = to
  }
}

async function all<T>(source: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = []
  for await (const item of source) found.push(item)
  return found
}

describe('frames of the files program', () => {
  const frames = fc.array(fc.record({ kind: fc.constantFrom<Frame['kind']>('head', 'data', 'end'), payload: bytes }))

  test('are read as they were written, with any division of the stream', async () => {
    await fc.assert(
      fc.asyncProperty(frames, cuts, async (sent, at) => {
        const whole = Buffer.concat(sent.map(({ kind, payload }) => frame(kind, payload)))
        expect(await all(readFrames(inChunks(whole, at)))).toEqual(sent)
      }),
    )
  })

  test('that are malformed, too long or cut off are an error', async () => {
    const read = (whole: Buffer) => all(readFrames(inChunks(whole, [])))
    await expect(read(Buffer.from('OCI runtime exec failed'))).rejects.toThrow('sends no frames')
    await expect(read(Buffer.from([0x64, 255, 255, 255, 255]))).rejects.toThrow('sends no frames')
    await expect(read(frame('data', Buffer.from('abc')).subarray(0, 6))).rejects.toThrow('ended within a frame')
    await expect(read(Buffer.from([0x64, 0]))).rejects.toThrow('ended within a frame')
  })
})

describe('the output of a program in a container', () => {
  const pieces = fc.array(
    fc.record({
      stream: fc.constantFrom<Output['stream']>('stdout', 'stderr'),
      bytes: bytes.filter(({ length }) => length > 0),
    }),
  )

  test('is separated by stream, with any division into chunks', async () => {
    await fc.assert(
      fc.asyncProperty(pieces, cuts, async (written, at) => {
        const multiplexed = written.map((piece) => {
          const head = Buffer.from([piece.stream === 'stdout' ? 1 : 2, 0, 0, 0, 0, 0, 0, 0])
          head.writeUInt32BE(piece.bytes.length, 4)
          return Buffer.concat([head, piece.bytes])
        })
        const read = await all(readOutput(inChunks(Buffer.concat(multiplexed), at)))
        for (const stream of ['stdout', 'stderr'] as const) {
          const of = (all: Output[]) =>
            Buffer.concat(all.filter((one) => one.stream === stream).map((one) => one.bytes))
          expect(of(read)).toEqual(of(written))
        }
      }),
    )
  })
})
