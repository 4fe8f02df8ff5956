import DataLoader from 'dataloader'

/** The greatest number of items in one query. */
const maxBatchSize = 500

/**
 * Combines calls into one query: those of one turn of the event loop, and those made while `maxConcurrent` queries run.
 * Under load, a request needs fewer queries. A query starts after the calls it serves, so no answer is older than its
 * call. `query` gets the arguments of the calls, and must return the answers in the same order.
 */
export function batched<Asked, Answer>(
  maxConcurrent: number,
  query: (asked: readonly Asked[]) => Promise<Answer[]>,
): (asked: Asked) => Promise<Answer> {
  let runningQueries = 0
  const waiting: (() => void)[] = []
  const loader = new DataLoader<Asked, Answer>(
    async (asked) => {
      runningQueries += 1
      try {
        return await query(asked)
      } finally {
        runningQueries -= 1
        waiting.shift()?.()
      }
    },
    {
      cache: false,
      maxBatchSize,
      batchScheduleFn: (send) => {
        if (runningQueries < maxConcurrent) setImmediate(send)
        else waiting.push(send)
      },
    },
  )
  return (asked) => loader.load(asked)
}
