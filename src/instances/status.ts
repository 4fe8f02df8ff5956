import { and, eq, isNotNull, isNull, lt, lte, ne, type SQL, sql } from 'drizzle-orm'
import { type Instance, instances } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'

export const instanceStatuses = ['provisioning', 'running', 'stopped', 'error', 'terminated'] as const
export type InstanceStatus = (typeof instanceStatuses)[number]

/** The columns that determine the status. */
type StatusColumns = Pick<Instance, 'desiredState' | 'generation' | 'observedGeneration' | 'readyAt'>

/** Whether a worker has fulfilled the last intent, or has given it up. */
export const isSettled = (row: StatusColumns): boolean => row.observedGeneration === row.generation

/** The status in the API. It is computed from the row and not stored. */
export function publicStatus(row: StatusColumns): InstanceStatus {
  if (row.desiredState !== 'running') return row.desiredState
  if (row.readyAt) return 'running'
  return isSettled(row) ? 'error' : 'provisioning'
}

/** Whether an instance was stopped because it was idle. */
export const isSleeping = (row: Pick<Instance, 'desiredState' | 'stoppedFor'>): boolean =>
  row.desiredState === 'stopped' && row.stoppedFor === 'idle'

/**
 * Whether the gateway of a sleeping instance is to be frozen, or to stay so, as far as its platform can. It loses its
 * token when it is stopped, or is to be: then it does not go on.
 */
export const maySleepFrozen = (row: Parameters<typeof isSleeping>[0] & Pick<Instance, 'relayTokenHash'>): boolean =>
  isSleeping(row) && row.relayTokenHash !== null

/** The step in the API. A gateway counts as busy also between two checks of a worker. */
export function shownStep(row: StatusColumns & Pick<Instance, 'busy' | 'step' | 'stoppedFor'>): string | null {
  if (isSettled(row)) return isSleeping(row) ? 'asleep' : row.step
  return row.busy !== null && publicStatus(row) === 'running' ? 'busy' : row.step
}

/** Throws conflict, with the status and the way out, unless the instance runs. */
export function requireRunning(row: StatusColumns): void {
  const status = publicStatus(row)
  if (status !== 'running') throw new AppError('instance_not_running', texts.notRunning(status))
}

/** The targets that a caller can wait for: a status whose work is done, or the end of all work. */
export const waitTargets = ['running', 'stopped', 'terminated', 'settled'] as const

/**
 * Whether a worker will still bring an instance to `target`. False for a settled row, for a running one if that is the
 * target, and for a target that needs another call.
 */
export function canStillReach(target: (typeof waitTargets)[number], row: StatusColumns): boolean {
  if (isSettled(row)) return false
  return target === 'settled' || publicStatus(row) === (target === 'running' ? 'provisioning' : target)
}

/** `publicStatus` in SQL. */
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

/** `isSleeping` in SQL. */
export const isAsleep = and(hasStatus.stopped, eq(instances.stoppedFor, 'idle'))

export const isNotTerminated = ne(instances.desiredState, 'terminated')

/** Whether a worker has yet to fulfil the last intent. */
export const isDue = lt(instances.observedGeneration, instances.generation)

/** Whether the lease is free. */
export const isFree = lt(instances.leaseUntil, sql`now()`)

/** Whether a worker may take the row now. */
export const isDueNow = and(isDue, isFree, lte(instances.nextAttemptAt, sql`now()`))

/** Whether an instance runs, is settled and free: then it may be compared with its sandbox or changed. */
export const isRunningAndFree = and(hasStatus.running, eq(instances.observedGeneration, instances.generation), isFree)
