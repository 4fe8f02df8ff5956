import { Readable } from 'node:stream'
import { takeShare } from '#platform/fair-share.ts'
import { isLongerThan } from './length.ts'
import { newMark } from './long-texts.ts'

/** A value with more characters than this in its texts would hold the event loop for as long as many requests. */
const largeCharacters = 1024 * 1024
const longCharacters = 1024
const pieceCharacters = 64 * 1024

/** What stands between the quotes of a text in JSON, in pieces. None ends between the halves of a surrogate pair. */
function* escaped(text: string): Generator<string> {
  for (let start = 0; start < text.length; ) {
    const isHalf = (text.charCodeAt(start + pieceCharacters - 1) & 0xfc00) === 0xd800
    const end = start + pieceCharacters + (isHalf ? 1 : 0)
    yield JSON.stringify(text.slice(start, end)).slice(1, -1)
    start = end
  }
}

/** Long texts are written by themselves: the JSON of the others is short. */
function* jsonPieces(value: unknown): Generator<string> {
  const mark = newMark()
  const longTexts: string[] = []
  const [first = '', ...others] = JSON.stringify(value, (_name, part: unknown) => {
    if (typeof part !== 'string' || part.length <= longCharacters) return part
    longTexts.push(part)
    return mark
  }).split(mark)
  yield first
  for (const [index, other] of others.entries()) {
    yield* escaped(longTexts[index] ?? '')
    yield other
  }
}

function* inLargerPieces(pieces: Iterable<string>): Generator<Buffer> {
  let collected = ''
  for (const piece of pieces) {
    collected += piece
    if (collected.length < pieceCharacters) continue
    yield Buffer.from(collected)
    collected = ''
  }
  yield Buffer.from(collected)
}

async function* asShared(pieces: Iterable<Buffer>, owner: string): AsyncGenerator<Buffer> {
  for (const piece of pieces) {
    await takeShare(owner, piece.length)
    yield piece
  }
}

/**
 * Writes a value of an owner as JSON; one with long texts as a stream, so that its JSON never is in memory as a whole,
 * and its writing takes no more of a turn of the event loop than the owner's share.
 */
export const writeJson = (value: unknown, owner: string): string | Readable =>
  isLongerThan(value, largeCharacters)
    ? Readable.from(asShared(inLargerPieces(jsonPieces(value)), owner), { objectMode: false })
    : JSON.stringify(value)
