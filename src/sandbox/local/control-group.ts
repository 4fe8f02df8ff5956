import { execFile } from 'node:child_process'
import { access, constants, mkdir, readdir, readFile, rmdir, writeFile } from 'node:fs/promises'
import { cpus } from 'node:os'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { poll } from '#platform/poll.ts'
import type { Resources } from '#sandbox/driver.ts'

/**
 * The control group of a sandbox: a folder for each controller with version 1 of cgroups, one for all with version 2.
 */
export interface ControlGroup {
  version: 1 | 2
  memory: string
  pids: string
  cpu: string
  /** Absent if the kernel has none, and in the record of an earlier version. */
  freezer?: string
  /** The kernel's count of out-of-memory kills in the group at the gateway's start. */
  oomKills: number
}

type Folders = Omit<ControlGroup, 'oomKills'>

/** Makes the control groups of the sandboxes of one data folder. */
export interface ControlGroups {
  /** The reason why there are none, for operators; null if there are. */
  readonly missing: string | null
  /** Makes the group of a sandbox, or finds that of its last gateway, and sets its limits; null without groups. */
  make(id: string, resources: Resources): Promise<ControlGroup | null>
}

const mountPoint = '/sys/fs/cgroup'
const controllers = ['memory', 'pids', 'cpu'] as const
const enableControllers = controllers.map((name) => `+${name}`).join(' ')
const megabyte = 1024 * 1024
const periodUs = 100_000
const removeTimeoutMs = 2000
const releaseTimeoutMs = 2000
const freezeTimeoutMs = 5000
/** The kernel moves some 300 MB a second to compressed swap, and less to a disk. */
const swapTimeoutMs = 40_000
/** A frozen group that keeps more memory than this has not been moved to swap. */
const maxFrozenBytes = 128 * megabyte
const pollMs = 20

/** The names of the kernel's files, and of lines in them. */
const names = {
  1: {
    limit: 'memory.limit_in_bytes',
    swapLimit: 'memory.memsw.limit_in_bytes',
    used: 'memory.usage_in_bytes',
    cached: 'total_inactive_file',
    events: 'memory.oom_control',
    weight: 'cpu.shares',
    freeze: 'freezer.state',
    frozen: 'FROZEN',
    thawed: 'THAWED',
    isFrozen: /^FROZEN$/m,
    state: 'freezer.state',
    reclaim: 'memory.force_empty',
  },
  2: {
    limit: 'memory.max',
    swapLimit: 'memory.swap.max',
    used: 'memory.current',
    cached: 'inactive_file',
    events: 'memory.events',
    weight: 'cpu.weight',
    freeze: 'cgroup.freeze',
    frozen: '1',
    thawed: '0',
    isFrozen: /^frozen 1$/m,
    state: 'cgroup.events',
    reclaim: 'memory.reclaim',
  },
} as const

/**
 * The weight of all groups of a data folder together on busy processors: half of the default. With version 2 it counts
 * beside groups such as Chowder's; with version 1 it counts beside single threads, one on each processor.
 */
const weights = { 1: 512 * cpus().length, 2: 50 } as const

const run = promisify(execFile)
const codeOf = (error: unknown) => (error as NodeJS.ErrnoException).code ?? String(error)
const unlessItExists = (error: unknown) => {
  if (codeOf(error) !== 'EEXIST') throw error
}
/** A file of a control group; empty when there is none. */
const read = (path: string) => readFile(path, 'utf8').catch(() => '')
const write = (path: string, value: string | number) => writeFile(path, String(value))

/** The number in a line such as `oom_kill 3`; null without the line. */
function numberIn(text: string, name: string): number | null {
  const found = new RegExp(`^${name} (\\d+)$`, 'm').exec(text)?.[1]
  return found === undefined ? null : Number(found)
}

const foldersOf = ({ memory, pids, cpu, freezer = cpu }: Folders) => [...new Set([memory, pids, cpu, freezer])]

/** The files to which a process writes `0` to enter a group. */
export const entriesOf = (group: ControlGroup): string[] =>
  foldersOf(group).map((folder) => join(folder, 'cgroup.procs'))

async function limitMemory({ version, memory }: ControlGroup, bytes: number): Promise<void> {
  const { limit, swapLimit } = names[version]
  if (version === 2) {
    await write(join(memory, limit), bytes)
    await write(join(memory, swapLimit), 0).catch(() => {}) // absent on a kernel without swap
    return
  }
  // The limit of memory and swap together may never be below that of memory, so the order depends on the former limits.
  await write(join(memory, limit), bytes).catch(() => {})
  await write(join(memory, swapLimit), bytes).catch((error) => {
    if (['EBUSY', 'EINVAL'].includes(codeOf(error))) throw error // otherwise the kernel does not count swap
  })
  await write(join(memory, limit), bytes)
}

async function limitOthers({ version, pids, cpu }: ControlGroup, resources: Resources): Promise<void> {
  await write(join(pids, 'pids.max'), resources.pids)
  const quota = Math.max(1000, Math.round(resources.cpus * periodUs))
  if (version === 2) return write(join(cpu, 'cpu.max'), `${quota} ${periodUs}`)
  await write(join(cpu, 'cpu.cfs_period_us'), periodUs)
  await write(join(cpu, 'cpu.cfs_quota_us'), quota)
}

/**
 * Changes the limits of a group in use. Returns false if its processes use more memory than the new limit: the other
 * limits change, the memory limit stays, and no process is killed.
 */
export async function setLimits(group: ControlGroup, resources: Resources): Promise<boolean> {
  await limitOthers(group, resources)
  const bytes = resources.memoryMb * megabyte
  const { memoryBytes } = await usageOf(group)
  if (memoryBytes !== null && memoryBytes > bytes) return false
  return limitMemory(group, bytes).then(
    () => true,
    (error) => {
      if (codeOf(error) === 'EBUSY') return false
      throw error
    },
  )
}

/** The use of a group by its processes; null for an unreadable value, such as after the group was removed. */
export async function usageOf({ version, memory, pids }: ControlGroup) {
  const { used, cached, limit } = names[version]
  const usedBytes = await read(join(memory, used))
  // The kernel can drop cached files at any time.
  const cachedBytes = numberIn(await read(join(memory, 'memory.stat')), cached) ?? 0
  const limitBytes = Number(await read(join(memory, limit)))
  const processes = await read(join(pids, 'pids.current'))
  return {
    memoryBytes: usedBytes === '' ? null : Math.max(0, Number(usedBytes) - cachedBytes),
    memoryLimitBytes: Number.isSafeInteger(limitBytes) && limitBytes > 0 ? limitBytes : null,
    processes: processes === '' ? null : Number(processes),
  }
}

/** The pids of the processes in a group, which they cannot leave. */
export const processesIn = async ({ pids }: ControlGroup): Promise<number[]> =>
  (await read(join(pids, 'cgroup.procs'))).split('\n').filter(Boolean).map(Number)

/** Whether a group is frozen, or is being frozen. */
export async function isFrozen({ version, freezer }: ControlGroup): Promise<boolean> {
  if (!freezer) return false
  const text = (await read(join(freezer, names[version].freeze))).trim()
  return text !== '' && text !== names[version].thawed
}

/** The free swap of this host, in bytes. */
export const freeSwap = async (): Promise<number> =>
  Number(/^SwapFree:\s+(\d+) kB$/m.exec(await read('/proc/meminfo'))?.[1] ?? 0) * 1024

/**
 * Freezes the processes of a group, and moves their memory to swap. Returns false, with the group thawed, if `swapBytes`
 * of swap are not enough, or the kernel does not do it.
 */
export async function freezeGroup(group: ControlGroup, swapBytes: number, signal: AbortSignal): Promise<boolean> {
  const { version, memory, freezer } = group
  const { memoryBytes } = await usageOf(group)
  if (!freezer || memoryBytes === null || swapBytes < memoryBytes) return false
  const { freeze, frozen, state, isFrozen: stateOfFrozen, used, swapLimit, reclaim } = names[version]
  await write(join(freezer, freeze), frozen)
  const hasFrozen = async () => stateOfFrozen.test(await read(join(freezer, state)))
  if (await poll(hasFrozen, { pauseMs: pollMs, timeoutMs: freezeTimeoutMs, signal })) {
    if (version === 2) await write(join(memory, swapLimit), 'max').catch(() => {})
    const asked = version === 2 ? await read(join(memory, used)) : '0'
    // A program of its own: the write lasts seconds, and would occupy one of the few threads that read files here. It
    // fails when the kernel keeps some of the memory.
    const writing = ['-c', 'echo "$1" >"$2"', 'sh', asked.trim(), join(memory, reclaim)]
    const limit = { timeout: swapTimeoutMs, killSignal: 'SIGKILL', signal } as const
    await run('/bin/sh', writing, limit).catch(() => signal.throwIfAborted())
    const left = (await usageOf(group)).memoryBytes
    if (left !== null && left <= maxFrozenBytes) return true
  }
  await thawGroup(group)
  return false
}

/** Lets the processes of a group go on. Does nothing for one that is not frozen. */
export async function thawGroup(group: ControlGroup): Promise<void> {
  const { version, memory, freezer } = group
  if (!freezer || !(await isFrozen(group))) return
  await write(join(freezer, names[version].freeze), names[version].thawed)
  if (version === 2) await write(join(memory, names[version].swapLimit), 0).catch(() => {})
}

const oomKillsOf = async ({ version, memory }: Folders): Promise<number> =>
  numberIn(await read(join(memory, names[version].events)), 'oom_kill') ?? 0

/** Whether the kernel has killed processes of the group for lack of memory since its gateway was started. */
export const ranOutOfMemory = async (group: ControlGroup): Promise<boolean> =>
  (await oomKillsOf(group)) > group.oomKills

/**
 * Waits, at most 2 s, until ended processes no longer count under the limits of a group: a process counts until its
 * parent, or the first process of the host, has read its exit code.
 */
export async function waitUntilEmpty(group: ControlGroup, signal: AbortSignal): Promise<void> {
  const isEmpty = async () => !(await usageOf(group)).processes
  await poll(isEmpty, { pauseMs: pollMs, timeoutMs: releaseTimeoutMs, signal })
}

/** Removes a group whose processes have ended. A missing group is no error. */
export async function removeGroup(group: ControlGroup, signal: AbortSignal): Promise<void> {
  let fault: unknown = null
  // A process that has just ended stays in its group for a moment.
  async function isRemoved(): Promise<boolean> {
    fault = null
    for (const folder of foldersOf(group)) {
      await rmdir(folder).catch((error) => {
        if (codeOf(error) !== 'ENOENT') fault = error
      })
    }
    return fault === null
  }
  if (!(await poll(isRemoved, { pauseMs: pollMs, timeoutMs: removeTimeoutMs, signal }))) throw fault
  // The parent goes with its last group.
  for (const folder of foldersOf(group)) await rmdir(dirname(folder)).catch(() => {})
}

/** The folder of this process in the hierarchy of version 2. */
const ownFolder = async () => join(mountPoint, /^0::(\/.*)$/m.exec(await read('/proc/self/cgroup'))?.[1] ?? '/')

/**
 * Enables the controllers for the folders in a folder. The kernel refuses that while the folder has its own processes,
 * so they are moved into a folder beside it.
 */
async function delegate(folder: string): Promise<void> {
  const control = join(folder, 'cgroup.subtree_control')
  const available = (await read(join(folder, 'cgroup.controllers'))).trim().split(' ')
  const lacking = controllers.find((name) => !available.includes(name))
  if (lacking) throw new Error(`the control group ${folder} has no controller of ${lacking}`)
  const isEnabled = await write(control, enableControllers).then(
    () => true,
    () => false,
  )
  if (isEnabled) return
  const aside = join(folder, 'chowder')
  await mkdir(aside, { recursive: true })
  for (const pid of (await read(join(folder, 'cgroup.procs'))).split('\n').filter(Boolean)) {
    await write(join(aside, 'cgroup.procs'), pid).catch(() => {}) // it has ended
  }
  await write(control, enableControllers)
}

/** The parent folders of a data folder's groups. Throws an error of the file system when they cannot be made. */
async function findParents(name: string, isRoot: boolean): Promise<Folders> {
  if (await read(join(mountPoint, 'cgroup.controllers'))) {
    // Groups of root are beside those of services, so that agents outlive the service of Chowder.
    let base = mountPoint
    if (!isRoot) {
      base = await ownFolder()
      // An earlier start has moved this process aside.
      if (base.endsWith('/chowder')) base = join(base, '..')
      await access(join(base, 'cgroup.procs'), constants.W_OK)
    }
    await delegate(base)
    const parent = join(base, name)
    return { version: 2, memory: parent, pids: parent, cpu: parent, freezer: parent }
  }
  if (!isRoot) throw new Error('only root can make control groups of version 1')
  const [memory, pids, cpu] = controllers.map((controller) => join(mountPoint, controller, name)) as [
    string,
    string,
    string,
  ]
  const freezers = join(mountPoint, 'freezer')
  const canFreeze = await access(freezers, constants.W_OK).then(
    () => true,
    () => false,
  )
  return { version: 1, memory, pids, cpu, ...(canFreeze && { freezer: join(freezers, name) }) }
}

async function makeParents(parents: Folders): Promise<void> {
  const { version, cpu } = parents
  for (const folder of foldersOf(parents)) await mkdir(folder).catch(unlessItExists)
  if (version === 2) await write(join(cpu, 'cgroup.subtree_control'), enableControllers)
  await write(join(cpu, names[version].weight), weights[version])
}

async function makeFolders(parents: Folders, group: ControlGroup): Promise<void> {
  await makeParents(parents)
  for (const folder of foldersOf(group)) await mkdir(folder).catch(unlessItExists)
}

/** Determines how this host can limit sandboxes, and removes the empty groups of sandboxes that do not exist. */
export async function openControlGroups(
  name: string,
  { isRoot, exists }: { isRoot: boolean; exists(id: string): Promise<boolean> },
): Promise<ControlGroups> {
  let parents: Folders
  try {
    const found = await findParents(name, isRoot)
    // The end of another sandbox may remove the parents meanwhile.
    await makeParents(found).catch(() => makeParents(found))
    parents = found
  } catch (error) {
    return { missing: (error as Error).message, make: async () => null }
  }
  for (const parent of foldersOf(parents)) {
    for (const entry of await readdir(parent, { withFileTypes: true }).catch(() => [])) {
      if (entry.isDirectory() && !(await exists(entry.name))) await rmdir(join(parent, entry.name)).catch(() => {})
    }
  }
  return {
    missing: null,
    async make(id, resources) {
      const { version, memory, pids, cpu, freezer } = parents
      const group: ControlGroup = {
        version,
        memory: join(memory, id),
        pids: join(pids, id),
        cpu: join(cpu, id),
        ...(freezer && { freezer: join(freezer, id) }),
        oomKills: 0,
      }
      // The end of another sandbox may have removed the parents.
      await makeFolders(parents, group).catch(() => makeFolders(parents, group))
      await limitOthers(group, resources)
      await limitMemory(group, resources.memoryMb * megabyte)
      return { ...group, oomKills: await oomKillsOf(group) }
    },
  }
}
