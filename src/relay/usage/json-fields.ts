const quote = 0x22
const comma = 0x2c
const colon = 0x3a
const openArray = 0x5b
const backslash = 0x5c
const closeArray = 0x5d
const openObject = 0x7b
const closeObject = 0x7d
const space = 0x20

/** A longer value is skipped: those that vendors report are shorter. */
const maxBytes = 16 * 1024
/** The kept end of a long text. */
const tailBytes = 4096

/** Matches every element of an array. */
const anyElement = '*'

/** The continuation of paths after a key: more keys, or the end of a path. */
type Next = Branch | string | undefined

/** The keys of a continuation. */
interface Branch {
  keys: { text: string; next: Branch | string }[]
}

function branchOf(paths: readonly string[]): Branch {
  const root: Branch = { keys: [] }
  for (const path of paths) {
    const texts = path.split('.')
    let branch = root
    for (const [index, text] of texts.entries()) {
      let entry = branch.keys.find((known) => known.text === text)
      if (!entry) {
        entry = { text, next: index === texts.length - 1 ? path : { keys: [] } }
        branch.keys.push(entry)
      }
      if (typeof entry.next === 'object') branch = entry.next
    }
  }
  return root
}

/** The text of a key, whose escapes would otherwise hide it; null if they are invalid. */
function unescaped(text: string): string | null {
  if (!text.includes('\\')) return text
  try {
    return JSON.parse(`"${text}"`)
  } catch {
    return null
  }
}

const elementOf = ({ keys }: Branch, index: number): Next =>
  keys.find(({ text }) => text === String(index) || text === anyElement)?.next

/** An open object or array that a path leads into. */
interface Container {
  /** -1: it is an object. */
  index: number
  branch: Branch
  /** The continuation for the next or open value. */
  next: Next
}

/** The value of a field before its end. */
interface Kept {
  path: string
  /** Whether it is a number, true, false or null: such values have no closing delimiter. */
  isBare: boolean
  /** Whether only the end of its text is kept. */
  isTail: boolean
  /** The number of open containers in it. */
  depth: number
  parts: Buffer[]
  bytes: number
}

export interface FieldReader {
  /** Parses the next piece of the text. Does not change it, and keeps no reference to its memory. */
  read(piece: Buffer): void
  /** Resets the reader for the next document. */
  reset(): void
}

/**
 * Extracts a few fields of a JSON text from pieces that are cut anywhere. A path is keys with dots between them: the
 * index of an element of an array is its key, or `*` for any. No path may be the prefix of another one. `onField` gets
 * each value after its last byte; the byte after a number ends it. Of the fields in `tails` it gets the last 4 KiB, as
 * JSON text that may begin anywhere. Memory holds only the open value, up to 16 KiB, however long the text is. In
 * invalid JSON it may find no fields or wrong ones; it throws nothing.
 */
export function createFieldReader(
  paths: readonly string[],
  onField: (path: string, value: unknown) => void,
  tails: readonly string[] = [],
): FieldReader {
  const root = branchOf(paths)
  const stack: Container[] = []
  /** The number of open containers that no path leads into. */
  let skipped = 0
  let kept: Kept | null = null
  /** The start of the kept part of the piece. */
  let keptFrom = 0
  let isKeyNext = false
  let isString = false
  /** Whether the next byte of the string is escaped. */
  let isEscaped = false
  /** The bytes of the open key: room for the longest wanted key with all its characters escaped. */
  const key = Buffer.alloc(256)
  /** -1: the open string is no key. */
  let keyLength = -1

  const expected = (): Next => (stack.length === 0 ? root : stack[stack.length - 1]?.next)

  function begin(path: string, at: number, isBare: boolean, depth: number): void {
    kept = { path, isBare, isTail: tails.includes(path), depth, parts: [], bytes: 0 }
    keptFrom = at
  }

  function keep(part: Buffer): void {
    if (!kept) return
    kept.bytes += part.length
    // A copy: otherwise the piece would stay in memory with it.
    if (kept.isTail) kept.parts.push(Buffer.from(part.subarray(-tailBytes)))
    else if (kept.bytes <= maxBytes) kept.parts.push(Buffer.from(part))
    if (!kept.isTail || kept.bytes < 2 * tailBytes) return
    kept.parts = [Buffer.concat(kept.parts).subarray(-tailBytes)]
    kept.bytes = tailBytes
  }

  function finish(lastPart: Buffer): void {
    keep(lastPart)
    const { path, isTail, parts, bytes } = kept as Kept
    kept = null
    const text = Buffer.concat(parts)
    let value: unknown
    try {
      if (isTail) value = text.subarray(-tailBytes).toString()
      else if (bytes <= maxBytes) value = JSON.parse(text.toString())
    } catch {
      return
    }
    if (value !== undefined) onField(path, value)
  }

  function endKey(): void {
    const parent = stack[stack.length - 1]
    if (!parent) return
    const text = keyLength > key.length ? null : unescaped(key.toString('utf8', 0, keyLength))
    parent.next = parent.branch.keys.find((known) => known.text === text)?.next
  }

  /** The index after the string, or the end of the piece. Most of a text is in strings: this is the hot loop. */
  function readString(piece: Buffer, from: number): number {
    const { length } = piece
    let at = isEscaped ? from + 1 : from
    isEscaped = false
    while (at < length) {
      const byte = piece[at]
      at += 1
      if (byte === quote) {
        isString = false
        break
      }
      if (byte !== backslash) continue
      at += 1
      if (at > length) isEscaped = true
    }
    const end = Math.min(at, length)
    if (keyLength !== -1) {
      const until = isString ? end : end - 1
      if (keyLength < key.length) piece.copy(key, keyLength, from, until)
      keyLength += until - from
    }
    return end
  }

  function beginString(at: number): void {
    isString = true
    isEscaped = false
    keyLength = -1
    if (kept || skipped > 0) return
    if (isKeyNext) {
      keyLength = 0
      return
    }
    const next = expected()
    if (typeof next === 'string') begin(next, at, false, 0)
  }

  function open(at: number, isObject: boolean): void {
    if (kept) kept.depth += 1
    else if (skipped > 0) skipped += 1
    else {
      const next = expected()
      if (next === undefined) skipped = 1
      else if (typeof next === 'string') begin(next, at, false, 1)
      else {
        stack.push({ index: isObject ? -1 : 0, branch: next, next: isObject ? undefined : elementOf(next, 0) })
        isKeyNext = isObject
      }
    }
  }

  function close(piece: Buffer, at: number): void {
    if (kept) {
      kept.depth -= 1
      if (kept.depth === 0) finish(piece.subarray(keptFrom, at + 1))
    } else if (skipped > 0) skipped -= 1
    else stack.pop()
  }

  function nextValue(): void {
    const parent = kept || skipped > 0 ? undefined : stack[stack.length - 1]
    if (!parent) return
    isKeyNext = parent.index === -1
    if (isKeyNext) return
    parent.index += 1
    parent.next = elementOf(parent.branch, parent.index)
  }

  function read(piece: Buffer): void {
    keptFrom = 0
    for (let at = 0; at < piece.length; ) {
      if (isString) {
        at = readString(piece, at)
        if (isString) continue
        if (keyLength !== -1) endKey()
        else if (kept?.depth === 0) finish(piece.subarray(keptFrom, at))
        continue
      }
      const byte = piece[at] as number
      const isEnd = byte === comma || byte === closeObject || byte === closeArray || byte <= space
      if (isEnd && kept?.isBare) finish(piece.subarray(keptFrom, at))
      if (byte === quote) beginString(at)
      else if (byte === openObject || byte === openArray) open(at, byte === openObject)
      else if (byte === closeObject || byte === closeArray) close(piece, at)
      else if (byte === comma) nextValue()
      else if (byte === colon) {
        if (!kept && skipped === 0) isKeyNext = false
      } else if (byte > space && !kept && skipped === 0) {
        const next = expected()
        if (typeof next === 'string') begin(next, at, true, 0)
      }
      at += 1
    }
    if (kept) keep(piece.subarray(keptFrom))
  }

  return {
    read,
    reset() {
      stack.length = 0
      skipped = 0
      kept = null
      isKeyNext = false
      isString = false
    },
  }
}
