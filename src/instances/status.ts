import { and, eq, isNotNull, isNull, lt, lte, ne, type SQL, sql } from 'drizzle-orm'
import { type Instance, instances } from '#database/schema.ts'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'

export const instanceStatuses = ['provisioning', 'running', 'stopped', 'error', 'terminated'] as const
export type InstanceStatus = (typeof instanceStatuses)[number]

/** Everything a status depends on. */
type StatusColumns = Pick<Instance, 'desiredState' | 'generation' | 'observedGeneration' | 'readyAt'>

/** What a bell is rung with. */
export const instanceRefColumns = {
  id: instances.id,
  organizationId: instances.organizationId,
  generation: instances.generation,
  leaseToken: instances.leaseToken,
}

/** Whether the world is as the last intent wants it, or as near as it will get without a new one. */
export const isSettled = (row: StatusColumns): boolean => row.observedGeneration === row.generation

/** The documented status of a row; there is no stored one. */
export function publicStatus(row: StatusColumns): InstanceStatus {
  if (row.desiredState !== 'running') return row.desiredState
  if (row.readyAt) return 'running'
  return isSettled(row) ? 'error' : 'provisioning'
}

/** Throws conflict, which names the status and what to do, unless the instance runs. */
export function requireRunning(row: StatusColumns): void {
  const status = publicStatus(row)
  if (status !== 'running') throw new AppError('conflict', texts.notRunning(status))
}

/** Whether a row has not this status with everything that goes with it yet, and is on the way there. */
export const canStillReach = (status: 'running' | 'stopped', row: StatusColumns): boolean =>
  publicStatus(row) === (status === 'running' ? 'provisioning' : 'stopped') && !isSettled(row)

/** The same rule in SQL. */
export const hasStatus = {
  provisioning: and(
    eq(instances.desiredState, 'running'),
    isNull(instances.readyAt),
    ne(instances.observedGeneration, instances.generation),
  ),
  running: and(eq(instances.desiredState, 'running'), isNotNull(instances.readyAt)),
  stopped: eq(instances.desiredState, 'stopped'),
  error: and(
    eq(instances.desiredState, 'running'),
    isNull(instances.readyAt),
    eq(instances.observedGeneration, instances.generation),
  ),
  terminated: eq(instances.desiredState, 'terminated'),
} satisfies Record<InstanceStatus, SQL | undefined>

/** Whether a worker has yet to make the last intent true. */
export const isDue = lt(instances.observedGeneration, instances.generation)

/** Whether nobody holds the lease. */
export const isFree = lt(instances.leaseUntil, sql`now()`)

/** Whether a worker may take the row now. */
export const isDueNow = and(isDue, isFree, lte(instances.nextAttemptAt, sql`now()`))

/** Running as wanted, at rest and held by nobody: what may be looked at for drift, or changed while it runs. */
export const isRunningAndFree = and(hasStatus.running, eq(instances.observedGeneration, instances.generation), isFree)

export const isNotTerminated = ne(instances.desiredState, 'terminated')
