import { randomBytes } from 'node:crypto'
import { ByteBuffer } from '#platform/byte-buffer.ts'
import { backslash, colon, continues, endOfString, isSpace, quote } from './bounds.ts'

/**
 * A text of more bytes than this is long. Long enough that what is left of a body without its long texts, which has a
 * bounded number of values, is small.
 */
const longBytes = 128
const pieceBytes = 64 * 1024
const letterU = 0x75

/**
 * A JSON text whose long texts were taken out. In their place are short ones, `mark` with the index of the long text,
 * which stays in the bytes: `places` has where each begins and ends.
 */
interface TakenOut {
  json: Buffer
  mark: string
  places: Uint32Array
}

export const asBuffer = ({ buffer, byteOffset, byteLength }: Uint8Array) => Buffer.from(buffer, byteOffset, byteLength)

/** Frees the memory of large bytes at once: a collection may come long after. */
export const free = ({ buffer }: Uint8Array) => void (buffer as ArrayBuffer).transfer(0)

/** Nobody can send it on purpose. */
export const newMark = () => randomBytes(12).toString('base64url')

function isName(bytes: Uint8Array, end: number): boolean {
  let at = end + 1
  while (at < bytes.length && isSpace(bytes[at] as number)) at += 1
  return bytes[at] === colon
}

/** Takes the long texts out of JSON in UTF-8; null when it has none. */
export function takeOutLongTexts(bytes: Buffer): TakenOut | null {
  const mark = newMark()
  const json = new ByteBuffer(pieceBytes, bytes.length)
  const places: number[] = []
  let from = 0
  for (let at = 0; at < bytes.length; at += 1) {
    if (bytes[at] !== quote) continue
    const start = at + 1
    at = endOfString(bytes, at)
    if (at - start <= longBytes || isName(bytes, at)) continue
    json.append(bytes.subarray(from, start))
    json.append(Buffer.from(`${mark}${places.length / 2}`))
    places.push(start, at)
    from = at
  }
  json.append(bytes.subarray(from))
  return places.length === 0 ? null : { json: json.take(), mark, places: Uint32Array.from(places) }
}

/** The ends of the pieces of a JSON text without its quotes. None is in a character, an escape or a surrogate pair. */
function* endsOfPieces(bytes: Buffer, start: number, end: number): Generator<number> {
  let from = start
  let length = 0
  for (let at = start; at < end; at += length) {
    length = bytes[at] !== backslash ? 1 : bytes[at + 1] === letterU ? 6 : 2
    // Before a \\u there may be the other half of a pair.
    if (at - from < pieceBytes || length === 6 || continues(bytes[at] as number)) continue
    yield at
    from = at
  }
  yield end
}

/** What a piece of a JSON text stands for. Throws when it is malformed, or has half of a surrogate pair. */
function read(bytes: Buffer, start: number, end: number): string {
  const text: string = JSON.parse(`"${bytes.toString('utf8', start, end)}"`)
  if (!text.isWellFormed()) throw new SyntaxError('half of a surrogate pair')
  return text
}

/**
 * Replaces the escapes in long texts by what they stand for, which is never longer, where they are. Throws when one is
 * malformed, and then has changed nothing.
 */
export function unescapeInPlace(bytes: Buffer, places: Uint32Array): void {
  const eachText = (act: (start: number, end: number, index: number) => void) => {
    for (let index = 0; index < places.length; index += 2)
      act(places[index] as number, places[index + 1] as number, index)
  }
  eachText((start, end) => {
    let from = start
    for (const to of endsOfPieces(bytes, start, end)) {
      read(bytes, from, to)
      from = to
    }
  })
  eachText((start, end, index) => {
    if (!bytes.subarray(start, end).includes(backslash)) return
    let from = start
    let written = start
    for (const to of endsOfPieces(bytes, start, end)) {
      written += bytes.write(read(bytes, from, to), written)
      from = to
    }
    places[index + 1] = written
  })
}

/** A value that was made of JSON without its long texts, and the bytes that have these, without escapes. */
export interface ValueInParts {
  value: unknown
  mark: string
  bytes: Uint8Array
  places: Uint32Array
}

/** Returns the value with its long texts, and frees their bytes. */
export function putBackLongTexts({ value, mark, bytes, places }: ValueInParts): unknown {
  const texts = asBuffer(bytes)
  const textAt = (index: number) => texts.toString('utf8', places[2 * index], places[2 * index + 1])
  const putBack = (holder: Record<string, unknown>): void => {
    for (const name in holder) {
      const part = holder[name]
      if (typeof part === 'string') {
        if (part.startsWith(mark)) holder[name] = textAt(Number(part.slice(mark.length)))
      } else if (typeof part === 'object' && part !== null) putBack(part as Record<string, unknown>)
    }
  }
  const holder = { value }
  putBack(holder)
  free(bytes)
  return holder.value
}
