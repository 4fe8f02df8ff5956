import { and, eq, type SQL, sql } from 'drizzle-orm'
import type { PgUpdateSetSource } from 'drizzle-orm/pg-core'
import type { Db } from '#database/client.ts'
import { type erasedSecrets, type Instance, instances } from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { leasesLost } from '#platform/metrics.ts'
import { raiseGeneration } from './intent.ts'
import { isNotTerminated, isRunningAndFree, isSettled } from './status.ts'

/** How long a lease lasts after it was taken or renewed, and thus how long a killed holder blocks its row. */
const leaseSeconds = 30
/** A timer renews the lease, not the steps, because a step may take minutes. */
const renewEveryMs = 10_000
/** The holder gives up by its own monotonic clock before another one may take the row. */
const maxHoldMs = 25_000
/** How soon the holder notices a changed intent. */
const checkEveryMs = 1000

/** Another worker may hold the row, so this one must stop writing it and acting for it. */
class LeaseLost extends Error {
  override name = 'LeaseLost'
}

/** The row has a newer generation than at the start of the work. */
export class IntentChanged extends Error {
  override name = 'IntentChanged'
}

/** Columns that only the holder of the lease writes. */
type ObservedColumns = Partial<
  Pick<
    Instance,
    | 'busy'
    | 'changedBy'
    | 'endpoint'
    | 'errorMessage'
    | 'limits'
    | 'relayTokenHash'
    | 'restartGeneration'
    | 'sandboxId'
    | 'step'
    | 'terminatedAt'
    | keyof typeof erasedSecrets
  >
> & { attempts?: number | SQL; readyAt?: SQL | null; updatedAt?: SQL }

/** Columns that a caller's change may set. */
export type EditableColumns = Omit<
  PgUpdateSetSource<typeof instances>,
  | keyof ObservedColumns
  | 'id'
  | 'organizationId'
  | 'desiredState'
  | 'generation'
  | 'observedGeneration'
  | 'leaseToken'
  | 'leaseUntil'
> & { sealedConfig?: string | null; sealedInstructions?: string | null }

/** The right to work on one row. Every write carries the fencing token, and throws LeaseLost when that has changed. */
export interface Lease {
  /** The row as this holder last read or wrote it. */
  readonly instance: Instance
  /** Aborted when the lease is lost or the process is to end. */
  readonly signal: AbortSignal
  /** Like `signal`; also aborted, with IntentChanged, once the row's generation changes. */
  untilIntentChanges(): AbortSignal
  /** Writes observations and rereads the row. */
  write(columns: ObservedColumns): Promise<void>
  /**
   * Records that the intent of `generation` is fulfilled, with the last observations. Returns false, and writes
   * nothing, when the intent has changed meanwhile.
   */
  settle(generation: number, columns: ObservedColumns): Promise<boolean>
  /**
   * Delays the next attempt at `generation`. Writes nothing when the intent has changed: a new intent need not wait.
   */
  postpone(generation: number, seconds: number, errorMessage: string): Promise<void>
  /**
   * Stores a verified change of a running gateway, with the writes of `also` in the same transaction. Settles unless
   * the intent has changed since `generation`. Returns false, and writes nothing, when the instance was terminated.
   */
  storeChange(
    generation: number,
    columns: ObservedColumns & Partial<EditableColumns>,
    also: (tx: Db) => Promise<unknown>,
  ): Promise<boolean>
}

const leaseEnd = sql`now() + make_interval(secs => ${leaseSeconds})`
/**
 * A random token for each lease of a row. A counter could repeat one after a failover that lost the last lease, and two
 * holders would share it. It has at most 52 bits, so that a JavaScript number holds it.
 */
const newLeaseToken = sql`floor(random() * 4503599627370496)::bigint`

/** The columns that take a lease. */
export const takeLease = { leaseToken: newLeaseToken, leaseUntil: leaseEnd }

export interface TakenInstance extends Instance {
  /** The request that wrote the intent; null when no request did. */
  requestId: string | null
}

/**
 * Takes a running row for a request that is about to change its gateway, and raises the generation in the same
 * statement: if the process dies half-way, the row is due and a worker restores the stored configuration. Null when the
 * instance does not run, or is held by a worker or another request.
 */
export async function takeForChange(db: Db, organizationId: string, id: string): Promise<Instance | null> {
  const [row] = await db
    .update(instances)
    .set({
      ...takeLease,
      ...raiseGeneration('changeRunning'),
      changedBy: changedBy({ type: 'instance.change_begun' }),
    })
    .where(and(eq(instances.id, id), eq(instances.organizationId, organizationId), isRunningAndFree))
    .returning()
  return row ?? null
}

/**
 * Runs `work` on a row that was taken by a statement sent at `takenAt` of `performance.now()`. Renews the lease until
 * the work ends, then releases it. Returns the row after the release, and whether it is due, so that the caller can
 * enqueue it. Null when the lease was lost. If the database is unreachable at the end, the lease expires.
 */
export async function withLease(
  db: Db,
  taken: Instance,
  takenAt: number,
  stop: AbortSignal,
  work: (lease: Lease) => Promise<void>,
): Promise<{ instance: Instance; due: boolean } | null> {
  const isOurs = and(eq(instances.id, taken.id), eq(instances.leaseToken, taken.leaseToken))
  const renewal = startRenewal(db, taken, isOurs, takenAt)
  const release = () => db.update(instances).set({ leaseUntil: sql`now()` }).where(isOurs).returning()
  let released: Instance | undefined
  try {
    await work(createLease(db, taken, isOurs, renewal, stop))
  } finally {
    renewal.stop()
    if (!renewal.lost.aborted) [released] = await release().catch(() => [])
  }
  return released ? { instance: released, due: !isSettled(released) } : null
}

interface Renewal {
  /** Aborted, with LeaseLost, once another worker may hold the row. */
  readonly lost: AbortSignal
  markLost(): LeaseLost
  /** Called with the generation of the row after each read. */
  recordGeneration(generation: number): void
  /** Aborted, with IntentChanged, once the row's generation differs from `generation`. */
  whileGenerationIs(generation: number): AbortSignal
  stop(): void
}

/** Renews the lease and reads the generation by a timer. */
function startRenewal(db: Db, taken: Instance, isOurs: SQL | undefined, takenAt: number): Renewal {
  let latestGeneration = taken.generation
  let renewedAt = takenAt
  let isChecking = false
  const lost = new AbortController()
  const watchers = new Set<{ generation: number; changed: AbortController }>()

  const markLost = () => {
    if (!lost.signal.aborted) leasesLost.inc()
    lost.abort(new LeaseLost(`the lease on ${taken.id} was lost`))
    return lost.signal.reason
  }

  const recordGeneration = (generation: number) => {
    latestGeneration = generation
    for (const watcher of watchers) if (watcher.generation !== generation) watcher.changed.abort(new IntentChanged())
  }

  async function check(): Promise<void> {
    const startedAt = performance.now()
    const isRenewal = startedAt - renewedAt >= renewEveryMs
    const { generation } = instances
    const [row] = isRenewal
      ? await db.update(instances).set({ leaseUntil: leaseEnd }).where(isOurs).returning({ generation })
      : await db.select({ generation }).from(instances).where(isOurs)
    if (!row) return markLost()
    if (isRenewal) renewedAt = startedAt
    recordGeneration(row.generation)
  }

  const timer = setInterval(() => {
    if (performance.now() - renewedAt >= maxHoldMs) markLost()
    if (isChecking || lost.signal.aborted) return
    isChecking = true
    // An unreachable database does not end the lease; maxHoldMs does.
    void check()
      .catch(() => {})
      .finally(() => {
        isChecking = false
      })
  }, checkEveryMs)

  return {
    lost: lost.signal,
    markLost,
    recordGeneration,
    whileGenerationIs(generation) {
      const changed = new AbortController()
      watchers.add({ generation, changed })
      if (latestGeneration !== generation) changed.abort(new IntentChanged())
      return changed.signal
    },
    stop: () => clearInterval(timer),
  }
}

function createLease(db: Db, taken: Instance, isOurs: SQL | undefined, renewal: Renewal, stop: AbortSignal): Lease {
  let instance = taken
  const signal = AbortSignal.any([renewal.lost, stop])

  const update = (on: Db, columns: PgUpdateSetSource<typeof instances>, condition?: SQL) =>
    on.update(instances).set(columns).where(and(isOurs, condition)).returning()

  /** Runs an UPDATE of the row. Returns false when it changed none. */
  async function run(statement: () => Promise<Instance[]>): Promise<boolean> {
    renewal.lost.throwIfAborted()
    const [row] = await statement()
    if (!row) return false
    instance = row
    renewal.recordGeneration(row.generation)
    return true
  }

  async function write(columns: ObservedColumns): Promise<void> {
    if (!(await run(() => update(db, columns)))) throw renewal.markLost()
  }

  /**
   * Runs an UPDATE with a condition. If the condition is false, rereads the row, which throws when the lease is lost.
   */
  async function runOrRead(statement: () => Promise<Instance[]>): Promise<boolean> {
    if (await run(statement)) return true
    await write({ step: null })
    return false
  }

  return {
    get instance() {
      return instance
    },
    signal,
    untilIntentChanges: () => AbortSignal.any([signal, renewal.whileGenerationIs(instance.generation)]),
    write,
    settle(generation, columns) {
      const settled = { ...columns, step: null, observedGeneration: generation }
      return runOrRead(() => update(db, settled, eq(instances.generation, generation)))
    },
    async postpone(generation, seconds, errorMessage) {
      const nextAttemptAt = sql`now() + make_interval(secs => ${seconds})`
      await runOrRead(() => update(db, { errorMessage, nextAttemptAt }, eq(instances.generation, generation)))
    },
    storeChange(generation, columns, also) {
      const isSameIntent = sql`${instances.generation} = ${generation}`
      const observed = instances.observedGeneration
      const observedGeneration = sql`CASE WHEN ${isSameIntent} THEN ${generation} ELSE ${observed} END`
      return runOrRead(() =>
        db.transaction(async (tx) => {
          const updated = await update(tx, { ...columns, observedGeneration }, isNotTerminated)
          if (updated.length > 0) await also(tx)
          return updated
        }),
      )
    },
  }
}
