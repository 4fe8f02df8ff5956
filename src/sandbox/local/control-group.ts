import { existsSync } from 'node:fs'
import { access, constants, mkdir, readdir, rmdir } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { poll } from '#platform/poll.ts'
import type { Resources } from '#sandbox/driver.ts'
import { numberIn, read, write } from './group-files.ts'
import { createWeighing, periodUs, processorTimeOf, setPriority, setWeightOfAll } from './weights.ts'

/** The control group of a sandbox: with version 1 of cgroups a folder for each resource, with version 2 one for all. */
export interface ControlGroup {
  version: 1 | 2
  memory: string
  pids: string
  cpu: string
  /** Where the processor time is counted; absent for a group of an older Chowder, whose time is not known. */
  cpuacct?: string
  /** How many processes of the group the kernel had ended for want of memory, when the gateway was started. */
  oomKills: number
  /** The processor time of the group then, in seconds; absent for a group of an older Chowder. */
  secondsBefore?: number
}

/** Makes the control groups of the sandboxes of one data folder. */
export interface ControlGroups {
  /** Why there are none, for operators; null when there are. */
  readonly missing: string | null
  /**
   * Makes the group of a sandbox, or finds that of its last gateway, and sets its limits; null when there are no
   * groups.
   */
  make(id: string, resources: Resources): Promise<ControlGroup | null>
  /**
   * Gives groups with a low priority, as `createPriorityWatch` says, a tenth of the weight of the others; those with
   * the lowest get what no other group wants of a processor, and on a kernel before 5.15 a hundredth of the weight. All
   * groups together weigh half of what another program on each processor does, and with version 2 of a group beside
   * them, so that Chowder and its database do not wait for an agent: up to the whole, by the part of their processor
   * time that starts use. Weights count only while a processor is busy.
   */
  weigh(): Promise<void>
}

const mountPoint = '/sys/fs/cgroup'
const megabyte = 1024 * 1024
const controllers = ['memory', 'pids', 'cpu'] as const
const enableControllers = controllers.map((name) => `+${name}`).join(' ')
const removeTimeoutMs = 2000
const releaseTimeoutMs = 2000
const pollMs = 20

const codeOf = (error: unknown) => (error as NodeJS.ErrnoException).code ?? String(error)
const unlessItExists = (error: unknown) => {
  if (codeOf(error) !== 'EEXIST') throw error
}
type Folders = Omit<ControlGroup, 'oomKills' | 'secondsBefore'>

const foldersOf = ({ memory, pids, cpu, cpuacct }: Folders) => [
  ...new Set([memory, pids, cpu, ...(cpuacct === undefined ? [] : [cpuacct])]),
]

/** The files that a process writes `0` to in order to enter a group. */
export const entriesOf = (group: ControlGroup): string[] =>
  foldersOf(group).map((folder) => join(folder, 'cgroup.procs'))

async function limitMemory({ version, memory }: ControlGroup, bytes: number): Promise<void> {
  if (version === 2) {
    await write(join(memory, 'memory.max'), bytes)
    // Absent on a kernel without swap.
    await write(join(memory, 'memory.swap.max'), 0).catch(() => {})
    return
  }
  const limit = () => write(join(memory, 'memory.limit_in_bytes'), bytes)
  const limitBoth = () =>
    write(join(memory, 'memory.memsw.limit_in_bytes'), bytes).catch((error) => {
      if (['EBUSY', 'EINVAL'].includes(codeOf(error))) throw error // else the kernel does not count swap
    })
  // The limit of both is never below that of memory: which one comes first depends on the former limits.
  await limit().then(limitBoth, () => limitBoth().then(limit))
}

const setRest = async ({ version, pids, cpu }: ControlGroup, resources: Resources): Promise<void> => {
  await write(join(pids, 'pids.max'), resources.pids)
  const quota = Math.max(1000, Math.round(resources.cpus * periodUs))
  if (version === 2) return write(join(cpu, 'cpu.max'), `${quota} ${periodUs}`)
  await write(join(cpu, 'cpu.cfs_period_us'), periodUs)
  await write(join(cpu, 'cpu.cfs_quota_us'), quota)
}

/**
 * Changes the limits of a group in use. False when its processes use more memory than the new limit, which ends none of
 * them: the other limits hold then, and that of memory stays as it was.
 */
export async function setLimits(group: ControlGroup, resources: Resources): Promise<boolean> {
  await setRest(group, resources)
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

/** What the processes of a group use; null for what the kernel does not tell, as of a group that was removed. */
export async function usageOf({ version, memory, pids }: ControlGroup) {
  const isNew = version === 2
  const used = await read(join(memory, isNew ? 'memory.current' : 'memory.usage_in_bytes'))
  // Files that are only cached can be dropped at any time.
  const cached = numberIn(await read(join(memory, 'memory.stat')), isNew ? 'inactive_file' : 'total_inactive_file')
  const limit = Number(await read(join(memory, isNew ? 'memory.max' : 'memory.limit_in_bytes')))
  const processes = await read(join(pids, 'pids.current'))
  return {
    memoryBytes: used === '' ? null : Math.max(0, Number(used) - (cached ?? 0)),
    memoryLimitBytes: Number.isSafeInteger(limit) && limit > 0 ? limit : null,
    processes: processes === '' ? null : Number(processes),
  }
}

const oomKillsOf = async ({ version, memory }: Pick<ControlGroup, 'version' | 'memory'>): Promise<number> =>
  numberIn(await read(join(memory, version === 2 ? 'memory.events' : 'memory.oom_control')), 'oom_kill') ?? 0

/** Whether the kernel has ended processes of the group for want of memory since its gateway was started. */
export const ranOutOfMemory = async (group: ControlGroup): Promise<boolean> =>
  (await oomKillsOf(group)) > group.oomKills

/**
 * Waits until the processes of a group that were ended count no more under its limits, at most 2 s: one counts until
 * its parent, or the first process of the host, has taken its exit code.
 */
export async function waitUntilEmpty(group: ControlGroup, signal: AbortSignal): Promise<void> {
  const isEmpty = async () => !(await usageOf(group)).processes
  await poll(isEmpty, { pauseMs: pollMs, timeoutMs: releaseTimeoutMs, signal })
}

/** Removes a group once its processes have ended. A group that does not exist is no error. */
export async function removeGroup(group: ControlGroup, signal: AbortSignal): Promise<void> {
  let fault: unknown = null
  // A process that has just ended is in its group for a moment longer.
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
  // The last group takes the folder of all with it.
  for (const folder of foldersOf(group)) await rmdir(dirname(folder)).catch(() => {})
}

type Parents = Required<Folders>

/** The folder of this process in the hierarchy of version 2. */
const ownFolder = async () => join(mountPoint, /^0::(\/.*)$/m.exec(await read('/proc/self/cgroup'))?.[1] ?? '/')

/** Gives the limits of a folder to the folders in it. Its own processes move aside: it may have none then. */
async function delegate(folder: string): Promise<void> {
  const control = join(folder, 'cgroup.subtree_control')
  const available = (await read(join(folder, 'cgroup.controllers'))).trim().split(' ')
  const lacking = controllers.find((name) => !available.includes(name))
  if (lacking) throw new Error(`the control group ${folder} has no controller of ${lacking}`)
  if (
    await write(control, enableControllers).then(
      () => true,
      () => false,
    )
  )
    return
  const aside = join(folder, 'chowder')
  await mkdir(aside, { recursive: true })
  for (const pid of (await read(join(folder, 'cgroup.procs'))).split('\n').filter(Boolean)) {
    await write(join(aside, 'cgroup.procs'), pid).catch(() => {}) // it has ended
  }
  await write(control, enableControllers)
}

/** The folders for the groups of a data folder. Throws an error of the file system when they cannot be had. */
async function findParents(name: string, isRoot: boolean): Promise<Parents> {
  if (await read(join(mountPoint, 'cgroup.controllers'))) {
    // Root's groups are beside those of services, so that agents outlive the one of Chowder.
    let base = mountPoint
    if (!isRoot) {
      base = await ownFolder()
      // In the folder that an earlier start has moved aside to.
      if (base.endsWith('/chowder')) base = join(base, '..')
      await access(join(base, 'cgroup.procs'), constants.W_OK)
    }
    await delegate(base)
    const parent = join(base, name)
    return { version: 2, memory: parent, pids: parent, cpu: parent, cpuacct: parent }
  }
  if (!isRoot) throw new Error('only root can make control groups of version 1')
  const of = (controller: string) => join(mountPoint, controller, name)
  const [memory, pids, cpu] = [of('memory'), of('pids'), of('cpu')]
  // A kernel that counts no processor time keeps the limits all the same.
  const countsTime = existsSync(join(mountPoint, 'cpuacct'))
  return { version: 1, memory, pids, cpu, cpuacct: countsTime ? of('cpuacct') : cpu }
}

async function makeParents(parents: Parents): Promise<void> {
  const isNew = !existsSync(parents.cpu)
  for (const folder of foldersOf(parents)) await mkdir(folder).catch(unlessItExists)
  if (parents.version === 2) await write(join(parents.memory, 'cgroup.subtree_control'), enableControllers)
  if (isNew) await setWeightOfAll(parents)
}

async function makeFolders(parents: Parents, group: ControlGroup): Promise<void> {
  await makeParents(parents)
  for (const folder of foldersOf(group)) await mkdir(folder).catch(unlessItExists)
}

/** The group of the last gateway of a sandbox, as it was when the gateway was started. */
type GroupOf = (id: string) => Promise<ControlGroup | null>

/** Finds out once how this host can limit sandboxes, and removes the empty groups of sandboxes that are gone. */
export async function openControlGroups(
  name: string,
  { isRoot, exists, groupOf }: { isRoot: boolean; exists(id: string): Promise<boolean>; groupOf: GroupOf },
): Promise<ControlGroups> {
  const parents = await findParents(name, isRoot)
    // The end of another sandbox may just remove the folder of all.
    .then((found) =>
      makeParents(found)
        .catch(() => makeParents(found))
        .then(() => found),
    )
    .catch((error: Error) => error)
  if (parents instanceof Error) {
    return { missing: parents.message, make: async () => null, weigh: async () => {} }
  }
  const newGroup = (id: string) => ({
    version: parents.version,
    memory: join(parents.memory, id),
    pids: join(parents.pids, id),
    cpu: join(parents.cpu, id),
    cpuacct: join(parents.cpuacct, id),
    oomKills: 0,
  })
  for (const parent of foldersOf(parents)) {
    for (const entry of await readdir(parent, { withFileTypes: true }).catch(() => [])) {
      if (entry.isDirectory() && !(await exists(entry.name))) await rmdir(join(parent, entry.name)).catch(() => {})
    }
  }
  return {
    missing: null,
    weigh: createWeighing(parents, async (id) => (await groupOf(id))?.secondsBefore ?? null),
    async make(id, resources) {
      const group = newGroup(id)
      // The end of another sandbox may just have removed the folder of all.
      await makeFolders(parents, group).catch(() => makeFolders(parents, group))
      await setRest(group, resources)
      await limitMemory(group, resources.memoryMb * megabyte)
      // What the last gateway computed says nothing of this one, which ends itself where its start takes too long.
      await setPriority(parents, group.cpu, 'usual')
      const secondsBefore = processorTimeOf(parents, group.cpuacct) ?? 0
      return { ...group, oomKills: await oomKillsOf(group), secondsBefore }
    },
  }
}
