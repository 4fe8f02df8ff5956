import { setTimeout as sleep } from 'node:timers/promises'
import { eq } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type Instance, instances } from '#database/schema.ts'

const waitAtMostMs = 60_000
const firstPauseMs = 100
const maxPauseMs = 1000
/** Each waiter polls the database: more than these are answered at once. */
const maxWaiters = 500

let waiters = 0

/**
 * Reads again and again, starting after `first`, until `isOver` and answers what it read last. That is also when
 * `signal` is aborted, `waitMs` passed, or too many are waiting in this process already.
 */
export async function readUntil<T>(
  first: T,
  isOver: (latest: T) => boolean,
  read: () => Promise<T>,
  { waitMs, signal }: { waitMs: number; signal: AbortSignal },
): Promise<T> {
  if (isOver(first) || waiters >= maxWaiters) return first
  waiters += 1
  try {
    const deadline = performance.now() + waitMs
    let latest = first
    for (let pause = firstPauseMs; ; pause = Math.min(pause * 1.5, maxPauseMs)) {
      const left = deadline - performance.now()
      if (left <= 0) return latest
      await sleep(Math.min(pause, left), undefined, { signal }).catch(() => {})
      if (signal.aborted) return latest
      latest = await read()
      if (isOver(latest)) return latest
    }
  } finally {
    waiters -= 1
  }
}

/**
 * Waits until the intent that `row` was written with has been worked off. Answers the row then, or as it is when it
 * was terminated, `signal` is aborted, 60 s passed, or too many are waiting in this process already.
 */
export async function waitUntilSettled(
  db: Db,
  row: Instance,
  signal: AbortSignal,
): Promise<{ row: Instance; settled: boolean }> {
  const settled = (latest: Instance) =>
    latest.observedGeneration >= row.generation || latest.desiredState === 'terminated'
  const read = async () => (await db.select().from(instances).where(eq(instances.id, row.id)))[0] ?? row
  const latest = await readUntil(row, settled, read, { waitMs: waitAtMostMs, signal })
  return { row: latest, settled: settled(latest) }
}
