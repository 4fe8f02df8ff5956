export const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

/**
 * The object of a JSON text; null for any other text. The tenant may have written any text into the files of an agent.
 */
export function parseObject(text: string | null): Record<string, unknown> | null {
  try {
    const parsed: unknown = JSON.parse(text ?? '')
    return isObject(parsed) ? parsed : null
  } catch {
    return null
  }
}

/** JSON merge patch (RFC 7396): objects are merged, null deletes, other values replace. Modifies neither argument. */
export function mergePatch(target: unknown, patch: unknown): unknown {
  if (!isObject(patch)) return patch
  const merged: Record<string, unknown> = isObject(target) ? { ...target } : {}
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) delete merged[key]
    else merged[key] = mergePatch(merged[key], value)
  }
  return merged
}

/** Keys that access JavaScript's prototypes, and `$include`, which makes the gateway read another file. */
export const unsafeKeys: ReadonlySet<string> = new Set(['__proto__', 'constructor', 'prototype', '$include'])

/**
 * Yields every key and value at any depth of `root`, whose own entries have depth 1. It is a loop, because a deeply
 * nested value would overflow the stack of a recursion.
 */
export function* nestedEntries(root: object): Generator<{ key: string; value: unknown; depth: number }> {
  const open = [{ object: root, depth: 1 }]
  for (let next = open.pop(); next; next = open.pop()) {
    const { object, depth } = next
    for (const [key, value] of Object.entries(object)) {
      yield { key, value, depth }
      if (typeof value === 'object' && value !== null) open.push({ object: value, depth: depth + 1 })
    }
  }
}
