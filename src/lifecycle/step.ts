import type { Db } from '#database/client.ts'
import type { Lease } from '#instances/lease.ts'
import type { BaseUrls } from '#openclaw/config.ts'
import type { Logger } from '#platform/log.ts'
import type { Vault } from '#platform/secrets.ts'
import type { SandboxDriver } from '#sandbox/driver.ts'

/** How patient the steps are, in ms; tests shorten them. */
export interface Timeouts {
  /** A gateway that starts and shows no progress is given up after this. */
  startWithoutProgressMs: number
  /** However much progress it shows, a start ends after this. */
  startMs: number
  /** A gateway that ran and does not answer is asked from inside its sandbox for this long before it is restarted. */
  hungMs: number
  /** What a gateway gets to end its turns before it is killed. */
  graceMs: number
}

export const defaultTimeouts: Timeouts = {
  startWithoutProgressMs: 120_000,
  startMs: 300_000,
  hungMs: 30_000,
  graceMs: 10_000,
}

export interface StepDeps {
  db: Db
  vault: Vault
  sandboxes: SandboxDriver
  baseUrls: BaseUrls
  clawhubUrl: string | undefined
  timeouts: Timeouts
}

/** One pass over an instance's plan. */
export interface StepContext extends StepDeps {
  lease: Lease
  /** Aborted when the lease is lost, the process is to end, or the intent has changed. */
  signal: AbortSignal
  log: Logger
  /** Whether this pass started the gateway, from the configuration that it wrote. */
  started: boolean
}

/** One idempotent move: look first, act only if the world is not yet so, record what must be remembered. */
export type Step = (context: StepContext) => Promise<void>
