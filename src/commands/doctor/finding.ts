import type { Db } from '#database/client.ts'
import type { ReconcileQueue } from '#lifecycle/queue.ts'
import type { Vault } from '#platform/secrets.ts'
import type { SandboxDriver } from '#sandbox/driver.ts'

/** What a check looks at. Nothing of it is started. */
export interface DoctorDeps {
  db: Db
  sandboxes: SandboxDriver & {
    /** Processes of agents that run outside a running sandbox, where the driver's sandboxes are processes. */
    orphans?(signal: AbortSignal): Promise<{ what: string; pids: number[] }[]>
  }
  /** null when there is no secret key where Chowder would look for it. */
  vault: Vault | null
  queue: Pick<ReconcileQueue, 'check' | 'ping' | 'oldestWaitMs'>
}

/** Something that is not as it must be. All texts are for an operator, and hold no secrets. */
export interface Finding {
  /** The invariant that does not hold, or the part of the installation that is at fault. */
  check: 'I1' | 'I2' | 'I3' | 'I4' | 'I5' | 'I6' | 'I7' | 'I8' | 'platform' | 'queue' | 'schema'
  what: string
  whatToDo: string
  /** What changes when the same words are said of a later state, such as the row's generation. */
  seen?: string | number
  /**
   * Repairs it if it is still so: answers in words what was done, or null when it is not so any more, or when a worker
   * holds the row. A crash half-way leaves it as it was, or repaired.
   */
  fix?(): Promise<string | null>
}

/** Looks for one kind of fault, pages of rows at a time. What may be a change under way is said too: it is looked at twice. */
export type Check = (deps: DoctorDeps, signal: AbortSignal) => AsyncIterable<Finding>

/** Rows that a check reads at once. */
export const pageSize = 500

/** A failure with what caused it, as an operator needs it. */
export const inWords = (error: unknown): string =>
  error instanceof Error ? [error.message, ...(error.cause ? [inWords(error.cause)] : [])].join(' ') : String(error)
