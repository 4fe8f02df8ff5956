import { readdir } from 'node:fs/promises'
import { cpus } from 'node:os'
import { join } from 'node:path'
import { lastingUse, lowShare } from '#sandbox/lasting-use.ts'
import { numberIn, readNow, write } from './group-files.ts'

/** The folders in which the kernel counts and shares processor time; see `ControlGroup`. */
interface CpuFolders {
  version: 1 | 2
  cpu: string
  cpuacct: string
}

/**
 * In seconds of a processor. A gateway needs some 11 until it is ready, and ends itself where it gets them too slowly: it
 * keeps its weight until it has used the most, or rests when it has used more than the least.
 */
const startSeconds = { least: 5, most: 15 }
/** In processors. A gateway that waits for a processor during its start gets more. */
const restingStart = 0.02
/** A look that is older says nothing: another process may have looked, and changed the weight, in between. */
const longestGapSeconds = 10
/** What a group was given is written again after so long: a write may fail, and another worker may have looked. */
const rewriteSeconds = 10
/** Of version 2; 1024 is the same of version 1. */
const usualWeight = 100
const lowWeight = usualWeight * lowShare
/**
 * Beside other programs of the host. Beside processes that compute on all processors, an answer by way of two others took
 * 1.1 times as long as usual with it at the 99th percentile, and 1.8 times with the usual weight. With less, agents
 * would be slow wherever another program computes.
 */
const weightOfAll = usualWeight / 2
/**
 * A group that others go before gets its weight back when it used less than so much for so many seconds: it asks for no
 * more, as an agent between its turns, or the others have left it no more, and wait for it in their turn.
 */
const returning = { use: 0.45, seconds: 3 }
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
 * Has the others go before a group, or no longer. Beside a fork bomb, the slowest of a hundred turns of another agent took
 * 0.8 times as long as usual with it, and 1.8 times with a tenth of the weight, which has to do where the kernel cannot.
 */
export async function setIdle(parents: CpuFolders, cpu: string, isIdle: boolean): Promise<void> {
  const isSet = await write(join(cpu, 'cpu.idle'), isIdle ? 1 : 0).then(
    () => true,
    () => false,
  )
  if (!isIdle) await writeWeight(parents, cpu, usualWeight)
  else if (!isSet) await writeWeight(parents, cpu, lowWeight)
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

/** The processor time of a group, when it was read; both in seconds. */
interface Look {
  at: number
  seconds: number
}
interface Seen {
  /** Those of the last seconds. */
  looks: Look[]
  isIdle: boolean
  writtenAt: number
  /** The processor time when the group was last seen to rest. */
  restedAt: number
}

/** What a group has used when its gateway was started, in seconds of a processor; null for a group that is gone. */
export type SecondsBefore = (id: string) => Promise<number | null>

/** See `ControlGroups.weigh`. */
export function createWeighing(parents: CpuFolders, secondsBefore: SecondsBefore): () => Promise<void> {
  let seen = new Map<string, Seen>()
  async function isInStart(id: string, seconds: number, restedAt: number): Promise<boolean> {
    // The record may just be written, or the sandbox be gone.
    const before = (await secondsBefore(id).catch(() => null)) ?? 0
    return seconds - before <= startSeconds.most && restedAt - before <= startSeconds.least
  }

  return async () => {
    const before = seen
    seen = new Map()
    let [usedByAll, usedByStarts] = [0, 0]
    const entries = await readdir(parents.cpu, { withFileTypes: true }).catch(() => [])
    for (const { name: id } of entries.filter((entry) => entry.isDirectory())) {
      const cpu = join(parents.cpu, id)
      const seconds = processorTimeOf(parents, join(parents.cpuacct, id))
      if (seconds === null) continue
      const now = { at: performance.now() / 1000, seconds }
      const found = before.get(id)
      const last = found && now.at - (found.looks.at(-1)?.at ?? 0) < longestGapSeconds ? found : undefined
      const looks = last?.looks ?? []
      const usedSince = (look = now) =>
        now.at > look.at ? Math.max(0, seconds - look.seconds) / (now.at - look.at) : 0
      const used = usedSince(looks.at(-2) ?? looks.at(-1))
      const processors = processorsOf(parents, cpu)
      const isResting = last !== undefined && used <= restingStart
      const restedAt = isResting ? seconds : (last?.restedAt ?? Number.NEGATIVE_INFINITY)
      const isStarting = used > restingStart && (await isInStart(id, seconds, restedAt))
      usedByAll += used
      if (isStarting) usedByStarts += used
      const longAgo = looks.findLast((look) => now.at - look.at >= returning.seconds)
      const isIdle =
        !isStarting &&
        (last?.isIdle
          ? longAgo === undefined || usedSince(longAgo) > returning.use * processors
          : used > lastingUse * processors)
      // At the first look, too: the process before this one may have changed it.
      const isToWrite = isIdle !== last?.isIdle || now.at - last.writtenAt > rewriteSeconds
      if (isToWrite) await setIdle(parents, cpu, isIdle)
      // What it used before the others went before it says nothing of what it asks for since.
      const isNewlyIdle = isIdle && !last?.isIdle
      const kept = isNewlyIdle ? [] : looks.filter((look) => look === longAgo || now.at - look.at < returning.seconds)
      seen.set(id, { looks: [...kept, now], isIdle, writtenAt: isToWrite ? now.at : last.writtenAt, restedAt })
    }
    // Where the kernel counts nothing, nobody knows what starts.
    const partOfStarts = seen.size === 0 ? 1 : usedByStarts / (usedByAll || 1)
    const all = Math.round(weightOfAll + (usualWeight - weightOfAll) * partOfStarts)
    await setWeightOfAll(parents, all)
  }
}
