import { AppError } from '#errors/app-error.ts'
import { driverCallDuration } from '#platform/metrics.ts'
import {
  SandboxAbsentError,
  SandboxCapacityError,
  type SandboxDriver,
  type SandboxFiles,
  SandboxPathError,
  useFiles,
} from './driver.ts'

function outcomeOf(error: unknown, signal: AbortSignal): string {
  if (signal.aborted) return 'aborted'
  if (error instanceof SandboxAbsentError) return 'absent'
  if (error instanceof SandboxCapacityError) return 'no_room'
  if (error instanceof SandboxPathError) return 'ok' // an error of the request, not of the platform
  return error instanceof AppError ? error.kind : 'failed'
}

type Measured = <T>(call: string, signal: AbortSignal, run: () => Promise<T>) => Promise<T>

const measuredIn =
  (region: string): Measured =>
  async (call, signal, run) => {
    const measure = driverCallDuration.startTimer({ region, call })
    try {
      const answer = await run()
      measure({ outcome: 'ok' })
      return answer
    } catch (error) {
      measure({ outcome: outcomeOf(error, signal) })
      throw error
    }
  }

/** The same files with every call measured. */
function measureFiles(files: SandboxFiles, measured: Measured): SandboxFiles {
  const call = <T>(name: string, signal: AbortSignal, run: () => Promise<T>) => measured(`files.${name}`, signal, run)
  return {
    list: (path, options, signal) => call('list', signal, () => files.list(path, options, signal)),
    stat: (path, signal) => call('stat', signal, () => files.stat(path, signal)),
    read: (path, options, signal) => call('read', signal, () => files.read(path, options, signal)),
    write: (path, content, options, signal) => call('write', signal, () => files.write(path, content, options, signal)),
    mkdir: (path, signal) => call('mkdir', signal, () => files.mkdir(path, signal)),
    move: (from, to, options, signal) => call('move', signal, () => files.move(from, to, options, signal)),
    remove: (path, options, signal) => call('remove', signal, () => files.remove(path, options, signal)),
  }
}

/** The driver of a region with the duration and the outcome of every call measured. */
export function measureDriver<Driver extends SandboxDriver>(driver: Driver, region: string): Driver {
  const measured = measuredIn(region)
  return {
    ...driver,
    create: (spec, signal) => measured('create', signal, () => driver.create(spec, signal)),
    start: (id, signal) => measured('start', signal, () => driver.start(id, signal)),
    stop: (id, options, signal) => measured('stop', signal, () => driver.stop(id, options, signal)),
    destroy: (id, signal) => measured('destroy', signal, () => driver.destroy(id, signal)),
    observe: (id, signal) => measured('observe', signal, () => driver.observe(id, signal)),
    activity: (id, signal) => measured('activity', signal, () => driver.activity(id, signal)),
    exec: (id, argv, options, signal) => measured('exec', signal, () => driver.exec(id, argv, options, signal)),
    readLog: (id, options, signal) => measured('readLog', signal, () => driver.readLog(id, options, signal)),
    limit: (id, resources, signal) => measured('limit', signal, () => driver.limit(id, resources, signal)),
    diskUse: (ids, signal) => measured('diskUse', signal, () => driver.diskUse(ids, signal)),
    memoryUse: (id, signal) => measured('memoryUse', signal, () => driver.memoryUse(id, signal)),
    measure: (id, signal) => measured('measure', signal, () => driver.measure(id, signal)),
    files: (id) => measureFiles(driver.files(id), measured),
    filesBatch: (id, use) => useFiles(driver, id, (files) => use(measureFiles(files, measured))),
  } satisfies SandboxDriver as Driver
}
