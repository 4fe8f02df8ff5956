/**
 * Whether the texts in a value have more than this many characters in total. Stops at the limit. A loop, because
 * recursion into a deeply nested value would overflow the stack.
 */
export function isLongerThan(value: unknown, characters: number): boolean {
  let left = characters
  const open = [value]
  while (open.length > 0 && left >= 0) {
    const part = open.pop()
    if (typeof part === 'string') left -= part.length
    if (typeof part !== 'object' || part === null) continue
    for (const [name, inner] of Object.entries(part)) {
      if (!Array.isArray(part)) left -= name.length
      open.push(inner)
    }
  }
  return left < 0
}
