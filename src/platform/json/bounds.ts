/** Bounds of a JSON text. */
export interface JsonBounds {
  /** Levels of nested lists and objects. */
  depth: number
  /**
   * Texts, numbers, true, false, null, lists and objects, at any level. A name counts too, once when it first appears,
   * and once for each 64 characters: building an object takes time by the length of its names, and longest for new
   * ones.
   */
  values: number
  /** Accepts all JSON: any key, half of a surrogate pair, and invalid UTF-8 as U+FFFD. */
  isLenient?: true
}

const quote = 0x22
const backslash = 0x5c
const comma = 0x2c
const colon = 0x3a
/** The number of characters of a name that count as one more value, as a power of two. */
const charactersOfName = 6
/** Whether a byte of UTF-8 is not the first one of its character. */
const continues = (code: number) => (code & 0xc0) === 0x80
const isSpace = (code: number) => code === 0x20 || code === 0x0a || code === 0x0d || code === 0x09
const opens = (code: number) => code === 0x5b || code === 0x7b
const closes = (code: number) => code === 0x5d || code === 0x7d

/** The index of the quote that ends the string that begins at `start`. */
function endOfString(json: Uint8Array, start: number): number {
  for (let at = start + 1; at < json.length; at += 1) {
    const code = json[at]
    if (code === backslash) at += 1
    else if (code === quote) return at
  }
  return json.length
}

/** The number of values that a name counts as. `names` has the hashes of earlier names. */
function weightOfName(json: Uint8Array, start: number, end: number, names: Set<number>): number {
  let characters = 0
  let hash = 0
  for (let at = start; at < end; at += 1) {
    const code = json[at] as number
    if (!continues(code)) characters += 1
    hash = (Math.imul(hash, 31) + code) | 0
  }
  const before = names.size
  return names.add(hash).size - before + (characters >> charactersOfName)
}

/**
 * The bound that a JSON text in UTF-8 exceeds; null if it exceeds none. Reads the bytes once and builds nothing, so
 * that no text costs much more than its length. Never throws: an invalid text gets some count.
 */
export function exceededBound(json: Uint8Array, bounds: JsonBounds): 'depth' | 'values' | null {
  let depth = 0
  let values = 1
  const names = new Set<number>()
  let isFirst = false
  let start = 0
  let end = 0
  for (let at = 0; at < json.length; at += 1) {
    const code = json[at] as number
    if (isSpace(code)) continue
    // A comma precedes every value of a list or an object but the first.
    if (code === comma || (isFirst && !closes(code))) values += 1
    isFirst = false
    if (code === quote) {
      start = at
      end = endOfString(json, at)
      at = end
    } else if (code === colon) {
      values += weightOfName(json, start, end, names)
      start = end // a second colon would count the name again
    } else if (opens(code)) {
      depth += 1
      isFirst = true
    } else if (closes(code)) depth -= 1
    if (depth > bounds.depth) return 'depth'
    if (values > bounds.values) return 'values'
  }
  return null
}
