import { setTimeout as sleep } from 'node:timers/promises'
import { eq } from 'drizzle-orm'
import type { Db } from '../database/client.ts'
import { type Instance, instances } from '../database/schema.ts'

const waitAtMostMs = 60_000
const firstPauseMs = 100
const longestPauseMs = 1000
/** Each waiter polls the database: more than these answer 202 at once. */
const mostWaiters = 500

let waiters = 0

/**
 * Waits until the intent that `row` was written with has been worked off. Answers the row then, or as it is when it
 * was terminated, `signal` is aborted, 60 s passed, or too many are waiting in this process already.
 */
export async function waitUntilSettled(
  db: Db,
  row: Instance,
  signal: AbortSignal,
): Promise<{ row: Instance; settled: boolean }> {
  if (waiters >= mostWaiters) return { row, settled: false }
  waiters += 1
  try {
    const deadline = performance.now() + waitAtMostMs
    let latest = row
    for (let pause = firstPauseMs; performance.now() < deadline; pause = Math.min(pause * 1.5, longestPauseMs)) {
      if (
        await sleep(pause, undefined, { signal }).then(
          () => false,
          () => true,
        )
      )
        break
      const [seen] = await db.select().from(instances).where(eq(instances.id, row.id))
      if (seen) latest = seen
      if (latest.observedGeneration >= row.generation || latest.desiredState === 'terminated') {
        return { row: latest, settled: true }
      }
    }
    return { row: latest, settled: false }
  } finally {
    waiters -= 1
  }
}
