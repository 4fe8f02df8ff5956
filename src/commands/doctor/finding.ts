import type { Db } from '#database/client.ts'
import type { Region } from '#instances/regions.ts'
import type { ReconcileQueue } from '#lifecycle/queue/queue.ts'
import type { HostDisk } from '#platform/host-disk.ts'
import type { Vault } from '#platform/secrets.ts'
import type { SandboxDriver } from '#sandbox/driver.ts'
import type { Config } from '#settings/config.ts'

interface DoctorRegion extends Region {
  sandboxes: SandboxDriver & {
    /** Processes of agents outside a running sandbox, for a driver whose sandboxes are processes. */
    orphans?(signal: AbortSignal): Promise<{ what: string; pids: number[] }[]>
  }
}

/** The parts of the installation for the checks. The doctor starts none of them. */
export interface DoctorDeps {
  /** The doctor's settings; the same as Chowder's when it runs in the same environment. */
  config: Config
  db: Db
  /** The whole installation, including regions that no process here serves. */
  regions: readonly DoctorRegion[]
  /** Absent if it is unknown. */
  hostDisk?: HostDisk
  /** Null when the secret key is missing. */
  vault: Vault | null
  queue: Pick<ReconcileQueue, 'check' | 'ping' | 'oldestWaitMs'>
}

/** The areas of the doctor, in the order of its report, each with its expected state. */
export const areas = {
  schema: 'the database has the schema of this version',
  secrets: 'the secret key is there, and opens all that is sealed',
  access: 'only those can call who are meant to',
  platform: 'the platform that runs the sandboxes can be reached',
  relay: 'agents reach the relay, through which they ask models',
  disk: 'the disk of the data folder has room for more than the control plane',
  queue: 'the queue can be reached, and workers take its jobs',
  instances: 'no instance waits for a worker, and each stop and delete succeeds',
  agents: 'no provider refuses the key of an organization, and no channel has an error or is left out',
  sandboxes: 'each sandbox belongs to an instance, and each process of an agent to a sandbox',
  releases: 'no agent has a version of OpenClaw that is too old to be started, or known to be vulnerable',
} as const
export type Area = keyof typeof areas

/** A deviation from the expected state. All texts are for the operator, and contain no secrets. */
export interface Finding {
  area: Area
  what: string
  whatToDo: string
}

/** Checks for one kind of fault. A change in progress is no fault. */
export type Check = (deps: DoctorDeps, signal: AbortSignal) => AsyncIterable<Finding>

/** The input of a check of one region. */
export type RegionDeps = DoctorDeps & DoctorRegion

/** Checks for a kind of fault in each region, and names the region when there are several. */
export const inEachRegion = (check: (deps: RegionDeps, signal: AbortSignal) => AsyncIterable<Finding>): Check =>
  async function* (deps, signal) {
    for (const region of deps.regions) {
      for await (const { what, ...finding } of check({ ...deps, ...region }, signal)) {
        yield { ...finding, what: deps.regions.length === 1 ? what : `Region ${region.region}: ${what}` }
      }
    }
  }

/** Maximum findings of a check in a report. */
export const maxFindings = 500

/** The messages of an error and of its causes. */
export const describeError = (error: unknown): string =>
  error instanceof Error
    ? [error.message, ...(error.cause ? [describeError(error.cause)] : [])].join(' ')
    : String(error)
