import type { Readable } from 'node:stream'

/** What is worked on for one owner in one turn of the event loop, in bytes: no more than takes a few ms. */
const bytesATurn = 32 * 1024

interface Share {
  left: number
  waiting: { bytes: number; goOn(): void }[]
}

/** Of the owners who have work in this turn of the event loop. */
const shares = new Map<string, Share>()

/** The next turn begins: those who wait go on, each owner's up to their share. */
function beginTurn(): void {
  for (const [owner, share] of shares) {
    if (share.waiting.length === 0) {
      shares.delete(owner)
      continue
    }
    share.left = bytesATurn
    for (let next = share.waiting.shift(); next; next = share.left > 0 ? share.waiting.shift() : undefined) {
      share.left -= next.bytes
      next.goOn()
    }
  }
  if (shares.size > 0) setImmediate(beginTurn)
}

/**
 * Asks to work on so many bytes of an owner: undefined when that may be done at once, else a promise that resolves when
 * the work of others has had its turn. An owner whose connections all bring bytes as fast as they are read, such as an
 * agent that floods its answers, then holds up nobody else for longer than its share takes.
 */
export function takeShare(owner: string, bytes: number): Promise<void> | undefined {
  let share = shares.get(owner)
  if (!share) {
    if (shares.size === 0) setImmediate(beginTurn)
    share = { left: bytesATurn, waiting: [] }
    shares.set(owner, share)
  }
  if (share.left > 0 && share.waiting.length === 0) {
    share.left -= bytes
    return undefined
  }
  const { promise, resolve } = Promise.withResolvers<void>()
  share.waiting.push({ bytes, goOn: resolve })
  return promise
}

/**
 * Has a stream of an owner flow as the share of its owner allows. Call it in the same turn of the event loop as what
 * else listens to its data, or that would miss the beginning.
 */
export function flowAsShared(stream: Readable, owner: string): void {
  stream.on('data', (chunk: Buffer) => {
    const wait = takeShare(owner, chunk.length)
    if (!wait) return
    stream.pause()
    void wait.then(() => stream.resume())
  })
}
