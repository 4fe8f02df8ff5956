import { and, eq, isNotNull, isNull, ne, type SQL, sql } from 'drizzle-orm'
import { type Instance, instances } from '../database/schema.ts'

export const instanceStatuses = ['provisioning', 'running', 'stopped', 'error', 'terminated'] as const
export type InstanceStatus = (typeof instanceStatuses)[number]

/** Everything a status depends on. */
type StatusColumns = Pick<Instance, 'desiredState' | 'generation' | 'observedGeneration' | 'readyAt'>

/** Whether the world is as the last intent wants it, or as near as it will get without a new one. */
export const isSettled = (row: StatusColumns): boolean => row.observedGeneration === row.generation

/** The documented status of a row; there is no stored one. */
export function publicStatus(row: StatusColumns): InstanceStatus {
  if (row.desiredState !== 'running') return row.desiredState
  if (row.readyAt) return 'running'
  return isSettled(row) ? 'error' : 'provisioning'
}

/** The same rule in SQL, for the statuses that statements are guarded by. */
export const hasStatus = {
  running: and(eq(instances.desiredState, 'running'), isNotNull(instances.readyAt)),
  stopped: eq(instances.desiredState, 'stopped'),
  error: and(
    eq(instances.desiredState, 'running'),
    isNull(instances.readyAt),
    eq(instances.observedGeneration, instances.generation),
  ),
  terminated: eq(instances.desiredState, 'terminated'),
} satisfies Partial<Record<InstanceStatus, SQL | undefined>>

/** Rows that want work now: due, held by nobody, and past the time of their next attempt. */
export const isDueNow = and(
  sql`${instances.observedGeneration} < ${instances.generation}`,
  sql`${instances.leaseUntil} < now()`,
  sql`${instances.nextAttemptAt} <= now()`,
)

/** Running as wanted, at rest and held by nobody: what may be looked at for drift, or changed while it runs. */
export const isRunningAtRest = and(
  hasStatus.running,
  eq(instances.observedGeneration, instances.generation),
  sql`${instances.leaseUntil} < now()`,
)

export const isNotTerminated = ne(instances.desiredState, 'terminated')
