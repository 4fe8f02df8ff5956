import type { Db } from '#database/client.ts'
import type { Lease } from '#instances/lease.ts'
import type { Region } from '#instances/regions.ts'
import type { HostDisk } from '#platform/host-disk.ts'
import type { Logger } from '#platform/log.ts'
import type { Vault } from '#platform/secrets.ts'
import type { StartLimit } from './start-limit.ts'

/** The time limits of steps that wait for a gateway, in ms. Tests shorten them. */
export interface Timeouts {
  /** A starting gateway without output for this long is stopped. */
  startWithoutProgressMs: number
  /** A starting gateway is stopped after this, whatever its output. */
  startMs: number
  /** A gateway that does not answer and has done nothing for this long is restarted. */
  hungMs: number
  /**
   * A gateway that does not answer is restarted after computing for this long without a pause, or when its agent has
   * used up its process limit for this long.
   */
  busyMs: number
  /** Time for a gateway to end its turns before it is killed. */
  graceMs: number
}

export const defaultTimeouts: Timeouts = {
  startWithoutProgressMs: 120_000,
  startMs: 300_000,
  hungMs: 30_000,
  busyMs: 10 * 60_000,
  graceMs: 10_000,
}

/** The dependencies of steps in a region. */
export interface StepDeps extends Region {
  db: Db
  vault: Vault
  clawhubUrl: string | undefined
  /** The disk that the control plane writes to, and local agents. */
  hostDisk: HostDisk
  /** The oldest version of OpenClaw that may be started. */
  minOpenclawVersion: string
  /** Limits how many gateways of the region this worker starts at the same time. */
  starts: StartLimit
  timeouts: Timeouts
}

/** The input of a step. */
export interface StepContext extends StepDeps {
  readonly lease: Lease
  /** Aborted when the lease is lost, the process ends, the intent changes, or the step takes too long. */
  readonly signal: AbortSignal
  readonly log: Logger
  /** Whether an earlier step of this run has started or thawed the gateway, with the configuration of this run. */
  readonly startedGateway: boolean
}

export interface Done {
  readonly kind: 'done'
  /** Whether this step has started or thawed the gateway. */
  readonly startedGateway: boolean
}

/** The instance did not fail: the attempt is not counted, and the next one follows after the given pause. */
export interface Again {
  readonly kind: 'again'
  readonly afterSeconds: number
  readonly reason: string
}

/** `failed` is tried again with growing pauses while attempts are left; `failed for good` is never tried again. */
export interface Failure {
  readonly kind: 'failed' | 'failed for good'
  /** Fit for the instance's owner and for the log. */
  readonly reason: string
  /** The gateway's own output. Only for the owner: output of an agent does not belong in Chowder's log. */
  readonly gatewayOutput?: string
  /** The exception behind the failure, for the log alone. */
  readonly error?: unknown
}

export type StepOutcome = Done | Again | Failure

/**
 * One idempotent step towards the desired state. It observes first, acts only where the sandbox or the gateway differs,
 * and records what later attempts need. Expected failures are outcomes; `failureOf` turns exceptions into failures.
 */
export type Step = (context: StepContext) => Promise<StepOutcome>

export const done: Done = { kind: 'done', startedGateway: false }
export const gatewayStarted: Done = { kind: 'done', startedGateway: true }
export const again = (afterSeconds: number, reason: string): Again => ({ kind: 'again', afterSeconds, reason })
export const failed = (reason: string): Failure => ({ kind: 'failed', reason })
export const failedForGood = (reason: string): Failure => ({ kind: 'failed for good', reason })
