/** What a JSON text may be. */
export interface JsonBounds {
  /** Levels of nested lists and objects. */
  depth: number
  /**
   * Texts, numbers, true, false, null, lists and objects, at any level. A name counts too, once for each 64 characters:
   * to build an object takes as long as its names are.
   */
  values: number
  /** Accepts what JSON accepts: any key, half of a surrogate pair, and bytes that are not UTF-8 as U+FFFD. */
  isLenient?: true
}

const quote = 0x22
const backslash = 0x5c
const comma = 0x2c
const colon = 0x3a
/** As a power of two. */
const charactersOfName = 6
const isSpace = (code: number) => code === 0x20 || code === 0x0a || code === 0x0d || code === 0x09
const opens = (code: number) => code === 0x5b || code === 0x7b
const closes = (code: number) => code === 0x5d || code === 0x7d

/** The index of the quote that ends the string that begins at `start`. */
function endOfString(text: string, start: number): number {
  for (let at = start + 1; at < text.length; at += 1) {
    const code = text.charCodeAt(at)
    if (code === backslash) at += 1
    else if (code === quote) return at
  }
  return text.length
}

/**
 * The bound that a JSON text exceeds; null when it exceeds none. It reads the text once and builds nothing, so that no
 * text costs much more than its length. A text that is no JSON is counted in some way, and never throws.
 */
export function exceededBound(text: string, bounds: JsonBounds): 'depth' | 'values' | null {
  let depth = 0
  let values = 1
  let isFirst = false
  let lengthOfText = 0
  for (let at = 0; at < text.length; at += 1) {
    const code = text.charCodeAt(at)
    if (isSpace(code)) continue
    // A comma stands before every value of a list or an object but the first.
    if (code === comma || (isFirst && !closes(code))) values += 1
    isFirst = false
    if (code === quote) {
      const start = at
      at = endOfString(text, at)
      lengthOfText = at - start
    } else if (code === colon) values += lengthOfText >> charactersOfName
    else if (opens(code)) {
      depth += 1
      isFirst = true
    } else if (closes(code)) depth -= 1
    if (depth > bounds.depth) return 'depth'
    if (values > bounds.values) return 'values'
  }
  return null
}
