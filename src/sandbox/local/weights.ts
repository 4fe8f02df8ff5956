import { readdir } from 'node:fs/promises'
import { cpus } from 'node:os'
import { join } from 'node:path'
import { lowShare, type Priority } from '#sandbox/processor-demand.ts'
import { numberIn, readNow, write } from './group-files.ts'
import { createPriorityWatch, type SecondsBefore } from './priority-watch.ts'
import { countBusy } from './processes.ts'

/** The folders in which the kernel counts and shares processor time; see `ControlGroup`. */
interface CpuFolders {
  version: 1 | 2
  cpu: string
  cpuacct: string
}

/** Of version 2; 1024 is the same of version 1. */
const usualWeight = 100
/** The lowest counts where the kernel cannot have all other groups go before one. */
const weights: Record<Priority, number> = { usual: usualWeight, low: usualWeight * lowShare, lowest: 1 }
/**
 * Beside other programs of the host. Beside processes that compute on all processors, an answer by way of two others took
 * 1.1 times as long as usual with it at the 99th percentile, and 1.8 times with the usual weight. With less, agents
 * would be slow wherever another program computes.
 */
const weightOfAll = usualWeight / 2
/** Of the limits of processor time, in microseconds. */
export const periodUs = 100_000
const processorsOfHost = cpus().length
/** Of version 1: with less, all agents together would weigh as much as one thread of another program. */
const sharesOfAll = 1024 * processorsOfHost

/** In seconds; null for a group that was removed, and where the kernel does not count it. */
export function processorTimeOf({ version }: CpuFolders, cpuacct: string): number | null {
  if (version === 2) {
    const used = numberIn(readNow(join(cpuacct, 'cpu.stat')), 'usage_usec')
    return used === null ? null : used / 1e6
  }
  const used = readNow(join(cpuacct, 'cpuacct.usage'))
  return used === '' ? null : Number(used) / 1e9
}

/**
 * All other groups go before one with the lowest priority, as `cpu.idle` says since Linux 5.15. A group that was removed
 * meanwhile is no error.
 */
export async function setPriority(parents: CpuFolders, cpu: string, priority: Priority): Promise<void> {
  await write(join(cpu, 'cpu.idle'), priority === 'lowest' ? 1 : 0).catch(() => {})
  // The kernel refuses the weight of a group that is idle, which needs none.
  await writeWeight(parents, cpu, weights[priority])
}

/** A group that was removed meanwhile is no error. `usualShares` are of version 1. */
async function writeWeight({ version }: CpuFolders, cpu: string, weight: number, usualShares = 1024): Promise<void> {
  const [file, value] =
    version === 2 ? ['cpu.weight', weight] : ['cpu.shares', Math.round((usualShares * weight) / usualWeight)]
  await write(join(cpu, file), value).catch(() => {})
}

/** Of all groups together; without a weight, of new ones. */
export const setWeightOfAll = (parents: CpuFolders, weight = usualWeight): Promise<void> =>
  writeWeight(parents, parents.cpu, weight, sharesOfAll)

/** How many processors a group may use. */
function processorsOf({ version }: CpuFolders, cpu: string): number {
  const quota =
    version === 2 ? parseInt(readNow(join(cpu, 'cpu.max')), 10) : Number(readNow(join(cpu, 'cpu.cfs_quota_us')))
  return Math.min(processorsOfHost, quota > 0 ? quota / periodUs : Number.POSITIVE_INFINITY)
}

/** Of the processes in a group. */
const threadsOf = ({ version }: CpuFolders, cpu: string) =>
  readNow(join(cpu, version === 2 ? 'cgroup.threads' : 'tasks'))
    .split('\n')
    .filter(Boolean)
    .map(Number)

/** See `ControlGroups.weigh`. */
export function createWeighing(parents: CpuFolders, secondsBefore: SecondsBefore): () => Promise<void> {
  const look = createPriorityWatch(secondsBefore)
  const cpuOf = (id: string) => join(parents.cpu, id)

  return async () => {
    const entries = await readdir(parents.cpu, { withFileTypes: true }).catch(() => [])
    const counted = entries.flatMap((entry) => {
      const { name: id } = entry
      const seconds = entry.isDirectory() ? processorTimeOf(parents, join(parents.cpuacct, id)) : null
      if (seconds === null) return []
      const cpu = cpuOf(id)
      const count = (most: number) => countBusy(threadsOf(parents, cpu), most)
      return [{ id, seconds, processors: processorsOf(parents, cpu), countBusy: count }]
    })
    const seen = await look(counted)
    for (const { id, priority, isToApply } of seen) if (isToApply) await setPriority(parents, cpuOf(id), priority)
    const usedBy = (some: typeof seen) => some.reduce((sum, { used }) => sum + used, 0)
    // Where the kernel counts nothing, nobody knows what starts.
    const partOfStarts =
      seen.length === 0 ? 1 : usedBy(seen.filter(({ isStarting }) => isStarting)) / (usedBy(seen) || 1)
    const all = Math.round(weightOfAll + (usualWeight - weightOfAll) * partOfStarts)
    await setWeightOfAll(parents, all)
  }
}
