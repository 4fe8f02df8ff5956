export interface ByteRange {
  start: number
  /** The offset after the last byte. */
  end: number
}

/**
 * The range that a `Range` header selects in a file of `size` bytes; `unsatisfiable` when the file has no such bytes.
 * null for the whole file: without the header, and, as HTTP allows, for more than one range and for a malformed range.
 */
export function parseRange(header: string | undefined, size: number): ByteRange | 'unsatisfiable' | null {
  const [, first, last] = /^bytes=(\d*)-(\d*)$/.exec(header ?? '') ?? []
  if (first === undefined || last === undefined || (first === '' && last === '')) return null
  if (first === '') {
    const length = Number(last)
    return length === 0 || size === 0 ? 'unsatisfiable' : { start: Math.max(0, size - length), end: size }
  }
  const start = Number(first)
  if (last !== '' && Number(last) < start) return null
  if (start >= size) return 'unsatisfiable'
  return { start, end: last === '' ? size : Math.min(size, Number(last) + 1) }
}
