/**
 * The bytes that a `Range` header asks for of a file of `size` bytes. null for the whole file: without the header, and
 * as HTTP allows, for several ranges at once and for what is no range. `none` when the file has no such bytes.
 */
export function rangeOf(header: string | undefined, size: number): { start: number; end: number } | 'none' | null {
  const [, from, to] = /^bytes=(\d*)-(\d*)$/.exec(header ?? '') ?? []
  if (from === undefined || to === undefined || (from === '' && to === '')) return null
  if (from === '') return Number(to) === 0 || size === 0 ? 'none' : { start: Math.max(0, size - Number(to)), end: size }
  const start = Number(from)
  const end = to === '' ? size : Math.min(size, Number(to) + 1)
  if (to !== '' && Number(to) < start) return null
  return start < size ? { start, end } : 'none'
}
