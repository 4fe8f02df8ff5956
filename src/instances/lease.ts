import { and, eq, type SQL, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type Instance, instances } from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { leasesLost } from '#platform/metrics.ts'
import { raiseGeneration } from './intent.ts'
import { isDueNow, isNotTerminated, isRunningAndFree, isSettled } from './status.ts'

/** How long a take or a renewal holds: also how long a killed holder blocks its row. */
const leaseSeconds = 30
/** Renewed by a timer, not by steps: a step may take minutes. */
const renewEveryMs = 10_000
/** The holder lets go by its own monotonic clock before anybody else may take the row. */
const holdAtMostMs = 25_000
/** How soon the holder learns that the intent has changed. */
const lookEveryMs = 1000

/** Somebody else may hold the row now: nothing may be written or done any more. */
class LeaseLost extends Error {
  override name = 'LeaseLost'
}

/** The row has a newer generation than the one that is being worked on. */
export class IntentChanged extends Error {
  override name = 'IntentChanged'
}

/** Columns that only the holder of the lease writes. */
type ObservedColumns = Partial<
  Pick<Instance, 'changedBy' | 'endpoint' | 'errorMessage' | 'sandboxId' | 'step' | 'terminatedAt'>
> & { attempts?: number | SQL; readyAt?: SQL | null; updatedAt?: SQL }

/** Columns that a caller's change may set. */
export type EditableColumns = Pick<Instance, 'name' | 'metadata' | 'sealedConfig'>

/** The right to work on one row, fenced by a token that every write carries. */
export interface Lease {
  /** The row as this holder last read or wrote it. */
  readonly instance: Instance
  /** Aborted when the lease is lost or the process is to end. */
  readonly signal: AbortSignal
  /** A signal that is also aborted, with IntentChanged, once the row's generation is another one than now. */
  untilIntentChanges(): AbortSignal
  /** Writes observations and reads the row again. Throws LeaseLost. */
  write(fields: ObservedColumns): Promise<void>
  /**
   * Declares that `generation` was worked off and writes the last observations. False, with nothing written, when the
   * intent has changed meanwhile: a newer change is never swallowed. Throws LeaseLost.
   */
  settle(generation: number, fields: ObservedColumns): Promise<boolean>
  /** Puts the work on `generation` off; an intent that is newer is not kept waiting by it. Throws LeaseLost. */
  postpone(generation: number, seconds: number, errorMessage: string): Promise<void>
  /**
   * Stores a verified change of a running gateway, and settles if the intent is still the one of `generation`; `also`
   * writes what belongs to it in the same transaction. False, with nothing written, when the instance was terminated
   * meanwhile. Throws LeaseLost.
   */
  store(
    generation: number,
    fields: ObservedColumns & Partial<EditableColumns>,
    also?: (tx: Db) => Promise<unknown>,
  ): Promise<boolean>
}

const held = sql`now() + make_interval(secs => ${leaseSeconds})`
/** An UPDATE must set something. */
const unchanged = { step: null }
const nextToken = sql`${instances.leaseToken} + 1`

/**
 * Takes a due row for a worker, in one statement, and counts the attempt: a worker that is killed has used one up.
 * Null when the row is not due, somebody holds it, its next attempt lies ahead, or it lives on another driver.
 */
export async function takeDue(db: Db, id: string, sandboxDriver: string): Promise<Instance | null> {
  const [row] = await db
    .update(instances)
    .set({ leaseToken: nextToken, leaseUntil: held, attempts: sql`${instances.attempts} + 1` })
    .where(and(eq(instances.id, id), eq(instances.sandboxDriver, sandboxDriver), isDueNow))
    .returning()
  return row ?? null
}

/**
 * Takes a running row at rest for a handler that is about to change its gateway, and raises the generation in the same
 * statement: if the handler dies half-way the row is due, and a worker restores the stored configuration.
 */
export async function takeForChange(db: Db, organizationId: string, id: string): Promise<Instance | null> {
  const [row] = await db
    .update(instances)
    .set({
      leaseToken: nextToken,
      leaseUntil: held,
      ...raiseGeneration('changeRunning'),
      changedBy: changedBy({ type: 'instance.change_begun' }),
    })
    .where(and(eq(instances.id, id), eq(instances.organizationId, organizationId), isRunningAndFree))
    .returning()
  return row ?? null
}

/**
 * Works on a row that was taken, by a statement sent at `takenAt` of `performance.now()`: renews the lease until `work`
 * ends, then releases it. Returns the row's state after the release, so that the caller rings if it is due; null when the lease was lost.
 */
export async function withLease(
  db: Db,
  taken: Instance,
  takenAt: number,
  stop: AbortSignal,
  work: (lease: Lease) => Promise<void>,
): Promise<{ instance: Instance; due: boolean } | null> {
  let instance = taken
  let latestGeneration = taken.generation
  let heldSince = takenAt
  let renewedAt = heldSince
  const lost = new AbortController()
  const mine = and(eq(instances.id, taken.id), eq(instances.leaseToken, taken.leaseToken))
  const watchers = new Set<{ generation: number; changed: AbortController }>()

  const lose = () => {
    if (!lost.signal.aborted) leasesLost.inc()
    lost.abort(new LeaseLost(`the lease on ${taken.id} was lost`))
    return lost.signal.reason
  }

  const noteGeneration = (generation: number) => {
    latestGeneration = generation
    for (const watcher of watchers) if (watcher.generation !== generation) watcher.changed.abort(new IntentChanged())
  }

  async function look(): Promise<void> {
    const startedAt = performance.now()
    const renewing = startedAt - renewedAt >= renewEveryMs
    try {
      const [seen] = renewing
        ? await db
            .update(instances)
            .set({ leaseUntil: held })
            .where(mine)
            .returning({ generation: instances.generation })
        : await db.select({ generation: instances.generation }).from(instances).where(mine)
      if (!seen) return lose()
      if (renewing) heldSince = renewedAt = startedAt
      noteGeneration(seen.generation)
    } catch {
      // The database is away: the deadline below decides.
    }
  }

  const release = async () => (await db.update(instances).set({ leaseUntil: sql`now()` }).where(mine).returning())[0]

  let looking = false
  const timer = setInterval(() => {
    if (performance.now() - heldSince >= holdAtMostMs) lose()
    if (looking || lost.signal.aborted) return
    looking = true
    void look().finally(() => {
      looking = false
    })
  }, lookEveryMs)

  const lease: Lease = {
    get instance() {
      return instance
    },
    signal: AbortSignal.any([lost.signal, stop]),
    untilIntentChanges() {
      const changed = new AbortController()
      const watcher = { generation: instance.generation, changed }
      watchers.add(watcher)
      if (latestGeneration !== watcher.generation) changed.abort(new IntentChanged())
      return AbortSignal.any([lease.signal, changed.signal])
    },
    async write(fields) {
      lost.signal.throwIfAborted()
      const [row] = await db.update(instances).set(fields).where(mine).returning()
      if (!row) throw lose()
      instance = row
      noteGeneration(row.generation)
    },
    async settle(generation, fields) {
      lost.signal.throwIfAborted()
      const [row] = await db
        .update(instances)
        .set({ ...fields, step: null, observedGeneration: generation })
        .where(and(mine, eq(instances.generation, generation)))
        .returning()
      if (row) {
        instance = row
        return true
      }
      await lease.write(unchanged) // throws if it is not ours any more
      return false
    },
    async postpone(generation, seconds, errorMessage) {
      lost.signal.throwIfAborted()
      const [row] = await db
        .update(instances)
        .set({ errorMessage, nextAttemptAt: sql`now() + make_interval(secs => ${seconds})` })
        .where(and(mine, eq(instances.generation, generation)))
        .returning()
      if (row) instance = row
      else await lease.write(unchanged)
    },
    async store(generation, fields, also) {
      lost.signal.throwIfAborted()
      const row = await db.transaction(async (tx) => {
        const [stored] = await tx
          .update(instances)
          .set({
            ...fields,
            observedGeneration: sql`CASE WHEN ${instances.generation} = ${generation} THEN ${generation} ELSE ${instances.observedGeneration} END`,
          })
          .where(and(mine, isNotTerminated))
          .returning()
        if (stored) await also?.(tx)
        return stored
      })
      if (row) {
        instance = row
        return true
      }
      await lease.write(unchanged)
      return false
    },
  }

  let released: Instance | undefined
  try {
    await work(lease)
  } finally {
    clearInterval(timer)
    // If the database is away the lease runs out by itself.
    if (!lost.signal.aborted) released = await release().catch(() => undefined)
  }
  return released ? { instance: released, due: !isSettled(released) } : null
}
