import { and, eq, or, sql } from 'drizzle-orm'
import type { PgUpdateSetSource } from 'drizzle-orm/pg-core'
import { type Db, retryOnDeadlock } from '#database/client.ts'
import { type Instance, instances, organizations } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { changedBy } from '#history/record.ts'
import { getInstance, isOwnedBy } from './row.ts'
import { hasStatus, type InstanceStatus, isAsleep, isDue, isNotTerminated, isSleeping, publicStatus } from './status.ts'

const now = sql`now()`
const nextGeneration = sql`${instances.generation} + 1`
const isStarting = and(isDue, eq(instances.desiredState, 'running'))
/** A gateway that was frozen goes on, with its token. */
const keptAsleep = sql`CASE WHEN ${isAsleep} THEN ${instances.relayTokenHash} END`
/** A gateway that was frozen, and has another configuration now, is started anew. */
const lostAsleep = sql`CASE WHEN ${isAsleep} THEN NULL ELSE ${instances.relayTokenHash} END`
const isStopping = and(isDue, eq(instances.desiredState, 'stopped'))

/**
 * Set by every request of the customer: former attempts no longer count, and the next one begins at once. The relay
 * refuses tokens of the previous gateway; a start replaces them.
 */
const requested = {
  readyAt: null,
  attempts: 0,
  nextAttemptAt: now,
  errorMessage: null,
  relayTokenHash: null,
  wakesAt: null,
  updatedAt: now,
}

/** Each reason to raise a generation, with the other columns that it sets. */
const intents = {
  start: {
    desiredState: 'running',
    isSuspended: false,
    stoppedFor: null,
    ...requested,
    relayTokenHash: keptAsleep,
    // A gateway that was asked to stop takes no turns and may take minutes to end, so it is ended as for a restart.
    restartGeneration: sql`CASE WHEN ${isStopping} THEN ${nextGeneration} ELSE ${instances.restartGeneration} END`,
  },
  stop: { desiredState: 'stopped', isSuspended: false, stoppedFor: null, ...requested },
  /** The instance has reached its disk limit. */
  stopForDisk: { desiredState: 'stopped', stoppedFor: 'disk', ...requested },
  /** The operator drains its region. */
  stopForDrain: { desiredState: 'stopped', stoppedFor: 'drain', ...requested },
  /**
   * It is idle: the next request or its own cron starts it. The gateway may be frozen, so it keeps its token, see
   * `maySleepFrozen`.
   */
  sleep: {
    desiredState: 'stopped',
    stoppedFor: 'idle',
    ...requested,
    relayTokenHash: sql`${instances.relayTokenHash}`,
  },
  /** The organization is suspended. */
  suspend: { desiredState: 'stopped', isSuspended: true, ...requested },
  terminate: { desiredState: 'terminated', ...requested, terminatedAt: now },
  /** A customer gets a warm instance, whose gateway goes on with its tokens. */
  takeFromPool: { readyAt: null, attempts: 0, nextAttemptAt: now, errorMessage: null, createdAt: now, updatedAt: now },
  /** A request is about to change the configuration of a running gateway, under a lease. */
  changeRunning: { attempts: 0 },
  /**
   * The stored configuration changes while the gateway does not run. Only a row that is due needs another generation.
   */
  changeStored: {
    generation: sql`${instances.generation} + CASE WHEN ${isDue} THEN 1 ELSE 0 END`,
    // The next start uses another configuration than the failed ones.
    attempts: sql`CASE WHEN ${isStarting} THEN 0 ELSE ${instances.attempts} END`,
    nextAttemptAt: sql`CASE WHEN ${isStarting} THEN now() ELSE ${instances.nextAttemptAt} END`,
    relayTokenHash: lostAsleep,
    updatedAt: now,
  },
  changeProviderKey: { attempts: 0 },
  /** Its name or its limits change. An agent that does not run gets them when it starts. */
  changeAgent: {
    generation: sql`${instances.generation} + CASE WHEN ${eq(instances.desiredState, 'running')} THEN 1 ELSE 0 END`,
    attempts: 0,
    nextAttemptAt: now,
    relayTokenHash: lostAsleep,
    updatedAt: now,
  },
  connectChannel: { attempts: 0, nextAttemptAt: now },
  /** A worker first ends the gateway. */
  restart: { ...requested, restartGeneration: nextGeneration },
  /** Chowder stops its agents when it stops; its next start restarts them. */
  stopWithChowder: { readyAt: null, attempts: 0, updatedAt: now },
  /** The sandbox differs from the row. The attempts are kept, so that a gateway that ends repeatedly is given up. */
  drift: { nextAttemptAt: now },
} as const satisfies Record<string, PgUpdateSetSource<typeof instances>>

export type Intent = keyof typeof intents

/**
 * The columns of an UPDATE that raises the generation for an intent, which makes the row due. No other code raises one.
 */
export const raiseGeneration = <I extends Intent>(intent: I) => ({ generation: nextGeneration, ...intents[intent] })

const actions = {
  start: {
    allowedFrom: ['stopped', 'error'],
    where: or(hasStatus.stopped, hasStatus.error),
    refusal: 'wrong_instance_status',
  },
  stop: { allowedFrom: ['running'], where: or(hasStatus.running, isAsleep), refusal: 'wrong_instance_status' },
  restart: { allowedFrom: ['running'], where: hasStatus.running, refusal: 'wrong_instance_status' },
} as const

/**
 * Records that an instance should run, stop or restart. A restart of one that starts anyway changes nothing. A stop of a
 * sleeping one ends its sleep. Throws not_found, and conflict with a status that forbids the change and that the
 * instance had during the call.
 */
export async function changeIntent(
  db: Db,
  organizationId: string,
  id: string,
  action: keyof typeof actions,
): Promise<Instance> {
  const { allowedFrom, where, refusal } = actions[action]
  for (;;) {
    const current = await getInstance(db, organizationId, id)
    const [row] = await db
      .update(instances)
      .set({ ...raiseGeneration(action), changedBy: changedBy() })
      .where(and(isOwnedBy(organizationId, id), where))
      .returning()
    if (row) return row
    const status = publicStatus(current)
    if (action === 'restart' && status === 'provisioning') return current
    // The status allows the change, so it changed before the UPDATE: read the new one.
    const isAllowed = (allowedFrom as readonly InstanceStatus[]).includes(status)
    if (!isAllowed && !(action === 'stop' && isSleeping(current))) {
      throw new AppError(refusal, texts.cannot(action, status))
    }
  }
}

/**
 * Records that an instance is to be destroyed, and uncounts it from the limit, in one statement. Its responses become
 * unreadable, and a periodic task deletes them. Null when it was terminated before, so that it is uncounted once.
 * Throws not_found.
 */
export async function terminateInstance(db: Db, organizationId: string, id: string): Promise<Instance | null> {
  await getInstance(db, organizationId, id)
  // All statements that change both rows lock the organization first: another order would deadlock.
  const locked = db
    .$with('locked')
    .as(
      db.select({ id: organizations.id }).from(organizations).where(eq(organizations.id, organizationId)).for('update'),
    )
  const terminated = db.$with('terminated').as(
    db
      .update(instances)
      .set({ ...raiseGeneration('terminate'), changedBy: changedBy() })
      .where(and(eq(instances.id, id), eq(instances.organizationId, sql`(SELECT id FROM ${locked})`), isNotTerminated))
      .returning(),
  )
  const withFreedPlace = db.$with('with_freed_place').as(
    db
      .update(organizations)
      .set({ instanceCount: sql`${organizations.instanceCount} - 1` })
      .where(and(eq(organizations.id, organizationId), sql`EXISTS (SELECT FROM ${terminated})`)),
  )
  const [row] = await retryOnDeadlock(() => db.with(locked, terminated, withFreedPlace).select().from(terminated))
  return row ?? null
}
