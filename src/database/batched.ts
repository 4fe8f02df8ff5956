import DataLoader from 'dataloader'

/** One query takes this many at most; the next one follows. */
const largestBatch = 500

/**
 * Makes one query of what is asked for in the same turn of the event loop, or while `mostAtOnce` queries are out: the
 * busier, the fewer queries a request. Each query starts after the asking, so nobody is told an older truth. `query` gets
 * what was asked for, and answers in the same order.
 */
export function batched<Asked, Answer>(
  maxConcurrent: number,
  query: (asked: readonly Asked[]) => Promise<Answer[]>,
): (asked: Asked) => Promise<Answer> {
  let queriesOut = 0
  const waiting: (() => void)[] = []
  const loader = new DataLoader<Asked, Answer>(
    async (asked) => {
      queriesOut += 1
      try {
        return await query(asked)
      } finally {
        queriesOut -= 1
        waiting.shift()?.()
      }
    },
    {
      cache: false,
      maxBatchSize: largestBatch,
      batchScheduleFn: (send) => {
        if (queriesOut < maxConcurrent) setImmediate(send)
        else waiting.push(send)
      },
    },
  )
  return (asked) => loader.load(asked)
}
