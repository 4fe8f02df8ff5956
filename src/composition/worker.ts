import type { Billing } from '#api/subscription/stripe.ts'
import { InstallError } from '#errors/install-error.ts'
import type { Region } from '#instances/regions.ts'
import { createPlatformOutage } from '#lifecycle/attempt/platform-outage.ts'
import type { LifecycleDeps, WorkerDeps } from '#lifecycle/attempt/reconcile.ts'
import { createStartLimit } from '#lifecycle/attempt/start-limit.ts'
import { defaultTimeouts } from '#lifecycle/attempt/step.ts'
import type { ReconcileQueue } from '#lifecycle/queue/queue.ts'
import { defaultIntervals, type Intervals, startWorker, type Worker } from '#lifecycle/worker.ts'
import { defaultRelease, openclawVersion } from '#openclaw/releases.ts'
import { type Logger, logProgress } from '#platform/log.ts'
import { SandboxUnavailableError } from '#sandbox/driver.ts'
import type { Config } from '#settings/config.ts'
import {
  defaultMaintenance,
  type MaintenanceIntervals,
  type MaintenanceParts,
  maintenanceTasks,
} from './maintenance.ts'
import type { OpenRegions } from './regions.ts'
import { sharedSettings } from './settings.ts'
import type { Startup } from './startup.ts'

export interface WorkerParts
  extends Pick<LifecycleDeps, 'db' | 'vault' | 'hostDisk'>,
    Pick<MaintenanceParts, 'operatorHosts' | 'publicUrl' | 'resolve'> {
  queue: ReconcileQueue
  /** The regions that the worker serves. */
  regions: { served(): readonly Region[] }
  billing: Billing | null
  /** The id of this process in the table `processes`. */
  processId: string
  /** The processes of the last beat. */
  alive: WorkerDeps['alive']
  log: Logger
}

export interface WorkerSettings extends Pick<LifecycleDeps, 'clawhubUrl' | 'minOpenclawVersion' | 'timeouts'> {
  /** Maximum concurrent reconciles. */
  concurrency: number
  intervals: Intervals
  maintenance: MaintenanceIntervals
}

/**
 * How many instances one worker works on at once. Those that wait for longer than a second do not count, up to 24 in all.
 * An operator who needs more adds workers.
 */
const slots = 8

const workerSettings = (config: Config): WorkerSettings => ({
  ...sharedSettings(config),
  concurrency: slots,
  timeouts: defaultTimeouts,
  intervals: defaultIntervals,
  maintenance: defaultMaintenance,
})

/** Starts a worker with all its periodic work. Throws the reason of `starting` once that is aborted. */
export function createWorker(parts: WorkerParts, settings: WorkerSettings, starting: AbortSignal): Promise<Worker> {
  const { concurrency, intervals, maintenance, ...shared } = settings
  const tasks = maintenanceTasks(parts, maintenance)
  const inRegion = (region: Region): LifecycleDeps => {
    const log = parts.log.child({ region: region.region })
    const platformOutage = createPlatformOutage(region.sandboxes, log)
    return { ...parts, ...shared, ...region, starts: createStartLimit(), platformOutage }
  }
  const regions = parts.regions.served().map(inRegion)
  return startWorker({ ...parts, regions: () => regions }, parts.queue, concurrency, intervals, starting, tasks)
}

/** Opens the worker, and prepares the default release in the background for the first instance. */
export async function openWorker(
  { config, log, drain }: Startup,
  parts: Omit<WorkerParts, 'operatorHosts' | 'regions'> & { regions: OpenRegions },
): Promise<void> {
  const { regions } = parts
  const operatorHosts = regions.served().flatMap((region) => region.operatorHosts)
  const worker = await createWorker({ ...parts, operatorHosts }, workerSettings(config), drain.signal)
  const preparing = new AbortController()
  drain.add('worker', () => {
    preparing.abort()
    return worker.stop()
  })
  for (const region of regions.served()) void prepareDefaultRelease(region, log, preparing.signal)
}

async function prepareDefaultRelease({ region, sandboxes }: Region, log: Logger, signal: AbortSignal): Promise<void> {
  try {
    await sandboxes.prepare(defaultRelease, logProgress(log), signal)
    log.info({ region }, `OpenClaw ${openclawVersion(defaultRelease)} is ready`)
  } catch (error) {
    if (signal.aborted || (error instanceof SandboxUnavailableError && error.isLogged)) return
    if (error instanceof InstallError)
      log.error({ region, output: error.output }, `${error.message} The next instance tries again.`)
    else log.error({ region, err: error }, 'OpenClaw could not be prepared; the next instance tries again')
  }
}
