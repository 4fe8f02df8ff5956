import { eq } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type Instance, instances } from '#database/schema.ts'
import { poll } from '#platform/poll.ts'

/** The longest that a request waits for a worker. */
export const settleTimeoutMs = 60_000
const firstPauseMs = 100
const maxPauseMs = 1000
const pauseMs = (checks: number) => Math.min(firstPauseMs * 1.5 ** (checks - 1), maxPauseMs)

/** Each waiting request polls the database: in one process more than these do not wait. */
const maxWaiting = 500
let waiting = 0

/**
 * Reads until `isFinal`, and returns the last value that was read: final, or the latest when `waitMs` have passed,
 * `signal` is aborted, or too many requests wait in this process. `first` was read before the call.
 */
export async function readUntil<T>(
  first: T,
  isFinal: (latest: T) => boolean,
  read: () => Promise<T>,
  { waitMs, signal }: { waitMs: number; signal: AbortSignal },
): Promise<T> {
  if (isFinal(first) || waiting >= maxWaiting) return first
  let latest = first
  const check = async () => {
    latest = await read()
    return isFinal(latest)
  }
  waiting += 1
  try {
    await poll(check, { pauseMs, timeoutMs: waitMs, signal })
  } catch (error) {
    if (!signal.aborted) throw error
  } finally {
    waiting -= 1
  }
  return latest
}

/**
 * Waits until a worker has settled the intent that `row` was written with, or the instance is terminated. Returns the
 * latest row and `settled: false` when `signal` is aborted, `waitMs` have passed, or too many requests wait in this
 * process.
 */
export async function waitUntilSettled(
  db: Db,
  row: Instance,
  until: { waitMs: number; signal: AbortSignal },
): Promise<{ row: Instance; settled: boolean }> {
  const isSettled = (latest: Instance) =>
    latest.observedGeneration >= row.generation || latest.desiredState === 'terminated'
  const read = async () => (await db.select().from(instances).where(eq(instances.id, row.id)))[0] ?? row
  const latest = await readUntil(row, isSettled, read, until)
  return { row: latest, settled: isSettled(latest) }
}
