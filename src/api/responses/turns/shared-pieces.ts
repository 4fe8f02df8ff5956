import { takeShare } from '#platform/fair-share.ts'

/** What of a stream is read and written without a pause: some 40 events of a token each, or 400 short ones. */
const pieceBytes = 8 * 1024
/** Bytes of events cost more than those that are only kept. */
const eventWeight = 4

/**
 * Reads chunks of a stream of events in small pieces, as the share of their owner allows. Calls `onChunk` for each that
 * arrives, and with 0 at their end. It throws the reason of the signal when that aborts while a piece waits for its
 * share, so that nothing holds on to the rest. It does not end `chunks` when its reader leaves earlier.
 */
export function sharedPieces(
  chunks: AsyncIterator<Buffer>,
  owner: string,
  signal: AbortSignal,
  onChunk: (bytes: number) => void,
): AsyncIterable<Buffer> {
  let unread: Buffer = Buffer.alloc(0)
  return {
    [Symbol.asyncIterator]: () => ({
      async next() {
        if (unread.length === 0) {
          const chunk = await chunks.next()
          onChunk(chunk.value?.length ?? 0)
          if (chunk.done) return chunk
          unread = chunk.value
        }
        const piece = unread.subarray(0, pieceBytes)
        unread = unread.subarray(pieceBytes)
        await takeShare(owner, piece.length * eventWeight, signal)
        signal.throwIfAborted()
        return { value: piece }
      },
    }),
  }
}
