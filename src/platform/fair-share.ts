import type { Readable } from 'node:stream'

/** What is worked on for one owner at a time, in bytes: it takes no more than about a ms. */
const shareBytes = 32 * 1024
/** What owners who have used up their shares leave to others who have work, in ms: most of the time. */
const pauseMs = 1
/** An owner counts as one who has work for so long after it began some, in ms. */
const recentMs = 100

/** What a frame of a WebSocket counts beside its bytes: a short one costs as much as some hundred bytes. */
export const frameWeight = 512

interface Share {
  left: number
  waiting: Set<{ bytes: number; goOn(): void }>
}

/** Of the owners who have had work since the last shares were given out. */
const shares = new Map<string, Share>()

/** The owner who began work last, and when; and when another one did. */
const latest = { owner: '', at: Number.NEGATIVE_INFINITY, otherAt: Number.NEGATIVE_INFINITY }

/** Notes that an owner has work. While several do, nobody gets one share directly after the other. */
export function noteWork(owner: string): void {
  if (owner !== latest.owner) {
    latest.otherAt = latest.at
    latest.owner = owner
  }
  latest.at = performance.now()
}

function giveSharesLater(): void {
  if (performance.now() - latest.otherAt < recentMs) setTimeout(giveShares, pauseMs)
  else setImmediate(giveShares)
}

/** Those who wait go on, each owner's up to their share. */
function giveShares(): void {
  for (const [owner, share] of shares) {
    if (share.waiting.size === 0) {
      shares.delete(owner)
      continue
    }
    noteWork(owner)
    share.left = shareBytes
    for (const next of share.waiting) {
      share.waiting.delete(next)
      share.left -= next.bytes
      next.goOn()
      if (share.left <= 0) break
    }
  }
  if (shares.size > 0) giveSharesLater()
}

/**
 * Asks to work on so many bytes of an owner: undefined when that may be done at once, else a promise that resolves when
 * the work of others has had its time. An owner whose connections all bring bytes as fast as they are read, such as an
 * agent that floods its answers, then holds up nobody else for longer than its share takes, and takes the smaller part
 * of the time. It has all of the time while nobody else has work. A promise whose signal aborts resolves at once, and
 * takes nothing of the share.
 */
export function takeShare(owner: string, bytes: number, signal?: AbortSignal): Promise<void> | undefined {
  noteWork(owner)
  let share = shares.get(owner)
  if (!share) {
    if (shares.size === 0) giveSharesLater()
    share = { left: shareBytes, waiting: new Set() }
    shares.set(owner, share)
  }
  if (signal?.aborted) return undefined
  if (share.left > 0 && share.waiting.size === 0) {
    share.left -= bytes
    return undefined
  }
  const { promise, resolve } = Promise.withResolvers<void>()
  const { waiting } = share
  const leave = () => {
    waiting.delete(asked)
    resolve()
  }
  const asked = {
    bytes,
    goOn() {
      signal?.removeEventListener('abort', leave)
      resolve()
    },
  }
  waiting.add(asked)
  signal?.addEventListener('abort', leave, { once: true })
  return promise
}

interface Source {
  pause(): unknown
  resume(): unknown
}

/** Pauses a source until a promise has settled, and all others for which it is paused. */
export type PauseDuring = (work: Promise<unknown>) => Promise<void>

export function createPauses(source: Source): PauseDuring {
  let pauses = 0
  return async (work) => {
    pauses += 1
    source.pause()
    await work.finally(() => {
      pauses -= 1
      if (pauses === 0) source.resume()
    })
  }
}

/**
 * Has a source bring what the share of its owner allows: call the returned function with the bytes of each piece. What
 * a paused source still brings counts as well.
 */
export function createShareCount(owner: string, pauseDuring: PauseDuring): (bytes: number) => Promise<void> {
  let uncounted = 0
  let isWaiting = false
  return async (bytes) => {
    uncounted += bytes
    if (isWaiting) return
    isWaiting = true
    while (uncounted > 0) {
      const wait = takeShare(owner, uncounted)
      uncounted = 0
      if (wait) await pauseDuring(wait)
    }
    isWaiting = false
  }
}

/**
 * Has a stream of an owner flow as the share of its owner allows. Call it in the same turn of the event loop as what
 * else listens to its data, or that would miss the beginning.
 */
export function flowAsShared(stream: Readable, owner: string): void {
  const count = createShareCount(owner, createPauses(stream))
  stream.on('data', (chunk: Buffer) => void count(chunk.length))
}
