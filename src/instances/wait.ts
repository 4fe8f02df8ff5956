import { eq } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type Instance, instances } from '#database/schema.ts'
import { poll } from '#platform/poll.ts'

/** The longest wait of a request for a worker. */
export const settleTimeoutMs = 60_000
const firstPauseMs = 100
const maxPauseMs = 1000
const pauseMs = (checks: number) => Math.min(firstPauseMs * 1.5 ** (checks - 1), maxPauseMs)

/** Maximum waiting requests, of all and of one organization: each polls the database. */
const maxWaiting = 500
const maxWaitingOfOrganization = 100
let waiting = 0
const waitingOf = new Map<string, number>()

interface Waiting {
  /** The organization of the waiting request. */
  organizationId: string
  waitMs: number
  signal: AbortSignal
}

/**
 * Reads until `isFinal`. Returns the final value, or the latest one when `waitMs` have passed, `signal` is aborted, or
 * too many requests wait in this process, of all or of the organization. `first` was read before the call.
 */
export async function readUntil<T>(
  first: T,
  isFinal: (latest: T) => boolean,
  read: () => Promise<T>,
  { organizationId, waitMs, signal }: Waiting,
): Promise<T> {
  const own = waitingOf.get(organizationId) ?? 0
  if (isFinal(first) || waiting >= maxWaiting || own >= maxWaitingOfOrganization) return first
  let latest = first
  const check = async () => {
    latest = await read()
    return isFinal(latest)
  }
  waiting += 1
  waitingOf.set(organizationId, own + 1)
  try {
    await poll(check, { pauseMs, timeoutMs: waitMs, signal })
  } catch (error) {
    if (!signal.aborted) throw error
  } finally {
    waiting -= 1
    const left = (waitingOf.get(organizationId) ?? 1) - 1
    if (left > 0) waitingOf.set(organizationId, left)
    else waitingOf.delete(organizationId)
  }
  return latest
}

/**
 * Waits until a worker has settled the intent of `row`, or the instance is terminated. Returns the latest row, with
 * `settled: false` when `signal` is aborted, `waitMs` have passed, or too many requests wait in this process.
 */
export async function waitUntilSettled(
  db: Db,
  row: Instance,
  until: Omit<Waiting, 'organizationId'>,
): Promise<{ row: Instance; settled: boolean }> {
  const isSettled = (latest: Instance) =>
    latest.observedGeneration >= row.generation || latest.desiredState === 'terminated'
  const read = async () => (await db.select().from(instances).where(eq(instances.id, row.id)))[0] ?? row
  const latest = await readUntil(row, isSettled, read, { ...until, organizationId: row.organizationId })
  return { row: latest, settled: isSettled(latest) }
}
