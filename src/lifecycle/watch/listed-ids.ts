/** Keeps the last twelve digits of an id, which are random. */
const keyOf = (id: string): number => parseInt(id.slice(-12), 16)

/**
 * A set of ids in 8 bytes each: as strings, 100,000 ids would make 8 MB of garbage after each comparison. Among a
 * million listed ids, an unlisted one matches falsely with a probability of 1 in 280 million.
 */
export interface ListedIds {
  readonly size: number
  has(id: string): boolean
}

/** Collects ids page by page; `sorted` may be called once, after the last page. */
export function collectIds() {
  let keys = new Float64Array(1024)
  let size = 0
  return {
    add(ids: readonly string[]): void {
      if (size + ids.length > keys.length) {
        const larger = new Float64Array(2 * (size + ids.length))
        larger.set(keys)
        keys = larger
      }
      keys.set(ids.map(keyOf), size)
      size += ids.length
    },
    sorted(): ListedIds {
      const sorted = keys.subarray(0, size).sort()
      return {
        size: sorted.length,
        has(id) {
          const key = keyOf(id)
          let [from, to] = [0, sorted.length]
          while (from < to) {
            const middle = (from + to) >>> 1
            if ((sorted[middle] ?? 0) < key) from = middle + 1
            else to = middle
          }
          return sorted[from] === key
        },
      }
    },
  }
}
