import { LRUCache } from 'lru-cache'

const maxAnswers = 10_000
/** A separate cache for misses, so that made-up keys do not evict used ones. */
const maxUnknown = 1000

/** Answers by their keys, including misses. Each is valid for a time after its read. */
export interface CachedAnswers<Answer extends object> {
  /** The answer for a key; null if there is none. Concurrent calls for a key share the read. */
  find(key: string): Promise<Answer | null>
  /** Makes the next call read the answer again. A running read is not cached. */
  forget(key: string): void
}

export function cachedFor<Answer extends object>(
  cachedMs: number,
  read: (key: string) => Promise<Answer | null>,
): CachedAnswers<Answer> {
  const known = new LRUCache<string, Answer>({ max: maxAnswers, ttl: cachedMs })
  const unknown = new LRUCache<string, true>({ max: maxUnknown, ttl: cachedMs })
  const reading = new Map<string, Promise<Answer | null>>()

  async function readOnce(key: string): Promise<Answer | null> {
    const start = performance.now()
    const result = read(key)
    reading.set(key, result)
    const isForgotten = () => reading.get(key) !== result
    try {
      const answer = await result
      if (isForgotten()) return answer
      if (answer) known.set(key, answer, { start })
      else unknown.set(key, true, { start })
      return answer
    } finally {
      if (!isForgotten()) reading.delete(key)
    }
  }

  return {
    async find(key) {
      const cached = unknown.has(key) ? null : known.get(key)
      return cached === undefined ? (reading.get(key) ?? readOnce(key)) : cached
    },
    forget(key) {
      for (const results of [known, unknown, reading]) results.delete(key)
    },
  }
}
