import { existsSync } from 'node:fs'
import { access, constants, mkdir, readdir, readFile, rmdir, writeFile } from 'node:fs/promises'
import { cpus } from 'node:os'
import { dirname, join } from 'node:path'
import { poll } from '#platform/poll.ts'
import type { Resources } from '#sandbox/driver.ts'
import { lastingUse, lowShare } from '#sandbox/lasting-use.ts'

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
   * Gives the groups that have computed nearly without a pause since the last call a tenth of the weight of the others,
   * until they rest. What a gateway computes for its start does not count. All groups together weigh beside the other
   * programs of the host as much as one of them on average, by what they used: else Chowder and its database would wait
   * for one that has little weight. Weights count only while a processor is busy.
   */
  weigh(): Promise<void>
}

const mountPoint = '/sys/fs/cgroup'
const periodUs = 100_000
const megabyte = 1024 * 1024
const controllers = ['memory', 'pids', 'cpu'] as const
/**
 * A gateway needs some 11 s of a processor until it is ready, and ends itself where it gets them too slowly. Until it has
 * used so many seconds it keeps its weight.
 */
const startSeconds = 15
/** A look that is older says nothing: another process may have looked, and changed the weight, in between. */
const longestGapSeconds = 10
/** Of version 2; 1024 is the same of version 1. */
const usualWeight = 100
const lowWeight = usualWeight * lowShare
/** With little weight a group may get less than it asks for: only with less use than this has it paused. */
const restingUse = 0.05
/** Of version 1: with less, all agents together would weigh as much as one thread of another program. */
const sharesOfAll = 1024 * cpus().length
const enableControllers = controllers.map((name) => `+${name}`).join(' ')
const removeTimeoutMs = 2000
const releaseTimeoutMs = 2000
const pollMs = 20

const read = (path: string) => readFile(path, 'utf8').catch(() => '')
const write = (path: string, value: string | number) => writeFile(path, String(value))
const unlessItExists = (error: unknown) => {
  if (codeOf(error) !== 'EEXIST') throw error
}
const codeOf = (error: unknown) => (error as NodeJS.ErrnoException).code ?? String(error)

/** The number of a line such as `oom_kill 3`; null without it. */
function numberIn(text: string, name: string): number | null {
  const found = new RegExp(`^${name} (\\d+)$`, 'm').exec(text)?.[1]
  return found === undefined ? null : Number(found)
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
  if (isNew) await writeWeight(parents, parents.cpu, usualWeight, sharesOfAll)
}

/** In seconds; null for a group that was removed, and where the kernel does not count it. */
async function processorTimeOf({ version }: Parents, cpuacct: string): Promise<number | null> {
  if (version === 2) {
    const used = numberIn(await read(join(cpuacct, 'cpu.stat')), 'usage_usec')
    return used === null ? null : used / 1e6
  }
  const used = await read(join(cpuacct, 'cpuacct.usage'))
  return used === '' ? null : Number(used) / 1e9
}

/** A group that was removed meanwhile is no error. `usualShares` are of version 1. */
async function writeWeight({ version }: Parents, cpu: string, weight: number, usualShares = 1024): Promise<void> {
  const [file, value] =
    version === 2 ? ['cpu.weight', weight] : ['cpu.shares', Math.round((usualShares * weight) / usualWeight)]
  await write(join(cpu, file), value).catch(() => {})
}

/** How many processors a group may use. */
async function processorsOf({ version }: Parents, cpu: string): Promise<number> {
  const quota =
    version === 2 ? parseInt(await read(join(cpu, 'cpu.max')), 10) : Number(await read(join(cpu, 'cpu.cfs_quota_us')))
  return Math.min(cpus().length, quota > 0 ? quota / periodUs : Number.POSITIVE_INFINITY)
}

async function makeFolders(parents: Parents, group: ControlGroup): Promise<void> {
  await makeParents(parents)
  for (const folder of foldersOf(group)) await mkdir(folder).catch(unlessItExists)
}

/** The group of the last gateway of a sandbox, as it was when the gateway was started. */
type GroupOf = (id: string) => Promise<ControlGroup | null>

/** See {@link ControlGroups.weigh}. */
function createWeighing(parents: Parents, groupOf: GroupOf): () => Promise<void> {
  let seen = new Map<string, { at: number; seconds: number; used: number; weight: number }>()
  const secondsBefore = async (id: string) => (await groupOf(id))?.secondsBefore ?? 0

  return async () => {
    const before = seen
    seen = new Map()
    const entries = await readdir(parents.cpu, { withFileTypes: true }).catch(() => [])
    for (const { name: id } of entries.filter((entry) => entry.isDirectory())) {
      const cpu = join(parents.cpu, id)
      const seconds = await processorTimeOf(parents, join(parents.cpuacct, id))
      if (seconds === null) continue
      const at = performance.now() / 1000
      const found = before.get(id)
      const last = found && at - found.at < longestGapSeconds ? found : undefined
      const used = last ? Math.max(0, seconds - last.seconds) : 0
      const use = last ? used / (at - last.at) / (await processorsOf(parents, cpu)) : 0
      const isBusy = use > (last?.weight === lowWeight ? restingUse : lastingUse)
      const isLow = isBusy && seconds - (await secondsBefore(id)) > startSeconds
      const weight = isLow ? lowWeight : usualWeight
      seen.set(id, { at, seconds, used, weight })
      // At the first look, too: the process before this one may have changed it.
      if (weight !== last?.weight) await writeWeight(parents, cpu, weight)
    }
    const groups = [...seen.values()]
    const usedByAll = groups.reduce((sum, { used }) => sum + used, 0)
    const weighted = groups.reduce((sum, { used, weight }) => sum + used * weight, 0)
    const average = usedByAll > 0 ? Math.round(weighted / usedByAll) : usualWeight
    await writeWeight(parents, parents.cpu, average, sharesOfAll)
  }
}

/** Finds out once how this host can limit sandboxes, and removes the empty groups of sandboxes that are gone. */
export async function openControlGroups(
  name: string,
  { isRoot, exists, groupOf }: { isRoot: boolean; exists(id: string): Promise<boolean>; groupOf: GroupOf },
): Promise<ControlGroups> {
  const parents = await findParents(name, isRoot)
    .then((found) => makeParents(found).then(() => found))
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
    for (const entry of await readdir(parent, { withFileTypes: true })) {
      if (entry.isDirectory() && !(await exists(entry.name))) await rmdir(join(parent, entry.name)).catch(() => {})
    }
  }
  return {
    missing: null,
    weigh: createWeighing(parents, groupOf),
    async make(id, resources) {
      const group = newGroup(id)
      // The end of another sandbox may just have removed the folder of all.
      await makeFolders(parents, group).catch(() => makeFolders(parents, group))
      await setRest(group, resources)
      await limitMemory(group, resources.memoryMb * megabyte)
      const secondsBefore = (await processorTimeOf(parents, group.cpuacct)) ?? 0
      return { ...group, oomKills: await oomKillsOf(group), secondsBefore }
    },
  }
}
