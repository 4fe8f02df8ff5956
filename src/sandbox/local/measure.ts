import { execFile } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { LRUCache } from 'lru-cache'
import type { Usage } from '#sandbox/driver.ts'
import { ticksPerSecond } from '#sandbox/process-stat.ts'
import { processesIn, usageOf } from './control-group.ts'
import type { SandboxFolder } from './folder.ts'
import { liveGateway, ownerOf } from './gateway.ts'
import { inTurns, processesInJail, processesOf, procFile, readStat } from './processes.ts'

const diskUse = join(import.meta.dirname, '../disk-use.sh')
const kibibyte = 1024
/** Measuring a folder reads all of its directories. */
const diskCachedMs = 60_000
const diskTimeoutMs = 10_000
const maxFolders = 1000
const memoryTimeoutMs = 5000
/** A line has some 50 bytes, and an agent at most some 10,000 processes. */
const maxMemoryText = kibibyte * kibibyte

const run = promisify(execFile)
const sum = (numbers: readonly number[]) => numbers.reduce((total, number) => total + number, 0)

/** The processor time of a process and of its ended children, in ticks; 0 after its end. */
const cpuTicksOf = (pid: number): number => readStat(pid)?.ticks ?? 0

/** The resident memory of a process, including shared memory, in bytes. The kernel locks nothing to read it. */
const residentOf = (pid: number) => Number(/^VmRSS:\s+(\d+)/m.exec(procFile(pid, 'status'))?.[1] ?? 0) * kibibyte

/**
 * The memory of processes in bytes, each with its share of common memory, or with all of it if the share is hidden. If
 * that takes longer than 5 s, the memory of the largest process, which is a lower bound: the kernel locks the memory of
 * a process that forks. A separate program reads it, because a waiting read would occupy one of the few threads that
 * read files here.
 */
async function memoryOf(pids: readonly number[]): Promise<number> {
  const paths = pids.map((pid) => `/proc/${pid}/smaps_rollup`)
  const options = { timeout: memoryTimeoutMs, killSignal: 'SIGKILL', env: {}, maxBuffer: maxMemoryText } as const
  const reading = run('/bin/grep', ['-sH', '^Pss:', '--', ...paths, '/dev/null'], options)
  // It fails if it cannot read one of the files.
  const { stdout, killed } = await reading.then(
    ({ stdout }) => ({ stdout, killed: false }),
    (error) => error,
  )
  const found = String(stdout).matchAll(/^\/proc\/(\d+)\/smaps_rollup:Pss:\s+(\d+)/gm)
  const shares = new Map(Array.from(found, ([, pid, kilobytes]) => [Number(pid), Number(kilobytes) * kibibyte]))
  const sizes = await inTurns(pids, (pid) => shares.get(pid) ?? residentOf(pid))
  return killed ? Math.max(0, ...sizes) : sum(sizes)
}

/** The start time of a process, from its ticks since boot. */
async function startOf(startTime: string): Promise<Date> {
  const bootedAt = Number(/^btime (\d+)$/m.exec(await readFile('/proc/stat', 'utf8'))?.[1])
  return new Date((bootedAt + Number(startTime) / ticksPerSecond) * 1000)
}

/**
 * The disk usage of a folder and of the deleted files that processes hold, as `disk-use.sh` counts it; null on failure.
 * Files may change meanwhile.
 */
export const diskOf = (path: string, pids: readonly number[] = [], signal?: AbortSignal): Promise<number | null> =>
  new Promise((resolve) => {
    const options = {
      timeout: diskTimeoutMs,
      killSignal: 'SIGKILL',
      env: { PATH: '/usr/bin:/bin' },
      ...(signal && { signal }),
    } as const
    execFile('/bin/sh', [diskUse, path, ...pids.map(String)], options, (_error, stdout) => {
      const bytes = /^(\d+)\n$/.exec(stdout)?.[1]
      resolve(bytes === undefined ? null : Number(bytes))
    })
  })

/** The disk usage of a sandbox, whether it runs or not; null on failure. */
export async function diskUseOf(
  folder: SandboxFolder,
  uid: number | null,
  signal: AbortSignal,
): Promise<number | null> {
  const group = await folder.controlGroup()
  // Without a group all processes of the host are searched.
  const find = async () => ((await liveGateway(folder, uid)) ? processesOf(await ownerOf(folder, uid)) : [])
  return diskOf(folder.path, await (group ? processesIn(group) : find()), signal)
}

/**
 * The memory that the limit of a sandbox counts; without a control group that of its processes. Null while it is
 * stopped.
 */
export async function memoryUseOf(folder: SandboxFolder, uid: number | null): Promise<number | null> {
  if (!(await liveGateway(folder, uid))) return null
  const group = await folder.controlGroup()
  const grouped = group && (await usageOf(group)).memoryBytes
  return grouped ?? memoryOf(await processesOf(await ownerOf(folder, uid)))
}

/** Measures sandboxes. Caches the sizes of folders for a minute. */
export function createMeasure() {
  const disks = new LRUCache<string, Promise<number | null>>({ max: maxFolders, ttl: diskCachedMs })

  function cachedDiskOf(path: string, pids: readonly number[]): Promise<number | null> {
    const size = disks.get(path) ?? diskOf(path, pids)
    disks.set(path, size, { noUpdateTTL: true })
    return size
  }

  return async (folder: SandboxFolder, uid: number | null, signal: AbortSignal): Promise<Usage> => {
    const isThere = await folder.exists()
    const gateway = isThere ? await liveGateway(folder, uid) : null
    const init = await folder.init()
    const inJail = gateway && init && (await processesInJail(init))
    const pids = inJail ?? (gateway ? await processesOf(await ownerOf(folder, uid)) : [])
    const group = gateway && (await folder.controlGroup())
    const grouped = group && (await usageOf(group))
    const ticks = await inTurns(pids, cpuTicksOf)
    const [memory, diskBytes] = await Promise.all([
      grouped?.memoryBytes ?? memoryOf(pids),
      isThere ? cachedDiskOf(folder.path, pids) : null,
    ])
    signal.throwIfAborted()
    return {
      since: gateway && (await startOf(gateway.startTime)),
      memoryBytes: gateway && memory,
      memoryLimitBytes: grouped?.memoryLimitBytes ?? null,
      cpuSeconds: gateway && sum(ticks) / ticksPerSecond,
      processes: gateway && pids.length,
      diskBytes,
    }
  }
}
