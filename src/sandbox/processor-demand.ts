/** Of a sandbox beside others: a low one has much less of the processors, and the lowest what nobody else wants. */
export type Priority = 'usual' | 'low' | 'lowest'

/** How many threads of a sandbox are busy at a look. */
export interface BusyThreads {
  /** They compute, or wait for a processor. */
  runnable: number
  /** They wait for a disk. */
  onDisk: number
}

/** What a sandbox kept wanting: at how many of the last looks, from 0 to 1, of which recent ones count more. */
export interface Demand {
  /** Several processors. */
  several: number
  /** Something at all. */
  any: number
  priority: Priority
}

/** Of a sandbox that has not been looked at, or starts. */
export const noDemand: Demand = { several: 0, any: 0, priority: 'usual' }
/** The share of its weight that a sandbox with a low priority keeps. */
export const lowShare = 0.1
/** Of a processor. A gateway needs some 11 until it is ready, and ends itself where it gets them too slowly. */
export const startSeconds = 15

/**
 * What a sandbox wants at a look: nothing, one processor or the disk, several processors, or more of them than an agent
 * without an attack keeps wanting.
 */
type Wanted = 'none' | 'one' | 'several' | 'many'

/** So many threads at once that compute, or wait for a processor. */
const threadsOf = { several: 2, many: 4 }
/**
 * A share of the processors that a sandbox may use, and the most of it in processors. A sandbox that used less since
 * the last look wants none: it rests, or other programs leave it so little that with a low priority its gateway would
 * not answer.
 */
const leastUse = { share: 0.1, most: 0.2 }
/** In processors: more than one thread can use. */
const useOfSeveral = 1.1
/** What was so long before a look counts a third. A program that forks without end is not to delay others for long. */
const memorySeconds = { usual: 5, many: 3 }
/** A look that finds several threads, or many, stands for no longer. */
const longestSeconds = 2
/**
 * One that wants several processors at all looks has a low priority after 6 s, and the lowest after 8; one that wants
 * many after 3 s and 5, with looks that are 2 s apart after 4 and 6. One that wants several at two looks in a row, 2 s
 * apart, has the usual one. What it used would not tell: an agent that is given one turn after another uses 0.7 to 1
 * processor, and wants several at 0.2 of the looks, when it collects garbage or begins a thread, for 2 s at most; four
 * processes beside others use 1.1. It wants many at 0.03 of the looks: with a memory of 3 s for these it had a low
 * priority at 11 of 8,900 looks, with 2 s at 41. Where the use decided, an agent that was given turns had a low priority
 * at 0.7 of the looks at it, and one that filled the disk at 0.04, so that it went before the other.
 */
const least = { low: 0.65, lowest: 0.78 }
/**
 * The share of the last looks, of which what was 20 looks ago counts a third, from which a sandbox never pauses: one
 * that wants something at all of them has a low priority after 59. An agent that fills its disk, or writes output
 * without end, wants something at 0.98 of the looks and more. One that is given a turn each second does at 0.5 of them;
 * one that is given one turn after another reached this share at 0.02 of the looks at most.
 */
const unpaused = { least: 0.95, looks: 20 }

/**
 * What a sandbox that uses so much of the processors that it may use wants. `countBusy` counts its threads, those that
 * are runnable up to `most`. Where the use tells enough, it may fail.
 */
export async function processorsWanted(
  used: number,
  processors: number,
  countBusy: (most: number) => Promise<BusyThreads>,
): Promise<Wanted> {
  if (used <= Math.min(leastUse.share * processors, leastUse.most)) return 'none'
  const { runnable, onDisk } = await countBusy(threadsOf.many).catch((error: unknown) => {
    // A program that forks without end can have the `ps` of a container take too long.
    if (used > useOfSeveral) return { runnable: 0, onDisk: 0 }
    throw error
  })
  if (runnable >= threadsOf.many) return 'many'
  if (used > useOfSeveral || runnable >= threadsOf.several) return 'several'
  // Where it may use no more than one, its threads also wait when they have used that up.
  return processors > 1 && runnable + onDisk > 0 ? 'one' : 'none'
}

/** After a look so many seconds after the last one. The lowest priority is kept until `several` tells of no low one. */
export function demandAfter(last: Demand, seconds: number, wanted: Wanted): Demand {
  const isMore = wanted === 'several' || wanted === 'many'
  const passed = isMore ? Math.min(seconds, longestSeconds) : seconds
  const memory = wanted === 'many' ? memorySeconds.many : memorySeconds.usual
  const several = last.several + (Number(isMore) - last.several) * (1 - Math.exp(-passed / memory))
  const any = last.any + (Number(wanted !== 'none') - last.any) / unpaused.looks
  if (several >= (last.priority === 'lowest' ? least.low : least.lowest)) return { several, any, priority: 'lowest' }
  return { several, any, priority: several >= least.low || any >= unpaused.least ? 'low' : 'usual' }
}
