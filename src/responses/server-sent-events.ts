import { ByteBuffer } from './byte-buffer.ts'

const lineFeed = 0x0a
const carriageReturn = 0x0d

/** Cuts a stream into its server-sent events wherever the chunks happen to end, and changes none of their bytes. */
export class EventCutter {
  readonly #held = new ByteBuffer()
  #isLineEmpty = true
  #isAfterReturn = false

  /** Bytes of the event that has not ended yet. */
  get heldBytes(): number {
    return this.#held.length
  }

  peek(bytes: number): Buffer {
    return this.#held.peek(bytes)
  }

  /** Takes the bytes of the event that has not ended yet; the next piece that `cut` returns is the rest of it. */
  release(): Buffer {
    return this.#held.take()
  }

  /**
   * The events that end in this chunk, each with the blank line that ends it. Lines end in LF, CRLF or CR; the LF of a
   * CRLF that ends an event is a piece of its own, because it may come much later.
   */
  cut(chunk: Buffer): Buffer[] {
    const events: Buffer[] = []
    let isLineEmpty = this.#isLineEmpty
    let isAfterReturn = this.#isAfterReturn
    let start = 0
    for (let at = 0; at < chunk.length; at++) {
      const byte = chunk[at]
      const isSecondHalf = byte === lineFeed && isAfterReturn
      isAfterReturn = byte === carriageReturn
      if (isSecondHalf) {
        if (at === start && this.#held.length === 0) events.push(chunk.subarray(at, ++start))
        continue
      }
      if (byte !== lineFeed && byte !== carriageReturn) {
        isLineEmpty = false
        continue
      }
      if (isLineEmpty) {
        events.push(this.#join(chunk.subarray(start, at + 1)))
        start = at + 1
      }
      isLineEmpty = true
    }
    if (start < chunk.length) this.#held.append(chunk.subarray(start))
    this.#isLineEmpty = isLineEmpty
    this.#isAfterReturn = isAfterReturn
    return events
  }

  #join(last: Buffer): Buffer {
    if (this.#held.length === 0) return last
    this.#held.append(last)
    return this.#held.take()
  }
}

export interface ServerSentEvent {
  /** The `event` field; null when there is none. */
  name: string | null
  /** The `data` lines, joined; null when there are none. */
  data: string | null
  /** Every other line, as it was. */
  otherLines: string[]
}

/** An event's name when its first line has it, as a gateway's do: enough to tell most events without reading them. */
export function leadingName(bytes: Buffer): string | null {
  const end = bytes.indexOf(lineFeed)
  return end !== -1 && bytes.toString('latin1', 0, 6) === 'event:' ? bytes.toString('latin1', 6, end).trim() : null
}

/** Reads one event as a client would. */
export function readEvent(bytes: Buffer): ServerSentEvent {
  const event: ServerSentEvent = { name: null, data: null, otherLines: [] }
  for (const line of bytes.toString('utf8').split(/\r\n|\r|\n/)) {
    const colon = line.indexOf(':')
    const field = colon === -1 ? line : line.slice(0, colon)
    const value = colon === -1 ? '' : line.slice(line[colon + 1] === ' ' ? colon + 2 : colon + 1)
    if (field === 'data') {
      event.data = event.data === null ? value : `${event.data}\n${value}`
      continue
    }
    if (field === 'event') event.name = value
    if (line !== '') event.otherLines.push(line)
  }
  return event
}

/** The bytes of an event. `data` must be one line, as JSON is. */
export const writeEvent = (otherLines: readonly string[], data: string, lineEnd = '\n', blankLine = '\n'): Buffer =>
  Buffer.from([...otherLines, `data: ${data}`, blankLine].join(lineEnd))

/** The event with other data. It keeps its kind of line ends, so that what was cut off after its last CR still fits. */
export function replaceData(bytes: Buffer, { otherLines }: ServerSentEvent, data: string): Buffer {
  const lineEnd = ['\r\n', '\r'].find((end) => bytes.includes(end)) ?? '\n'
  return writeEvent(otherLines, data, lineEnd, bytes.toString('latin1', bytes.length - 1))
}
