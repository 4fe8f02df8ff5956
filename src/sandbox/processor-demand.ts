/** Of a sandbox beside others: a low one has much less of the processors, and the lowest what nobody else wants. */
export type Priority = 'usual' | 'low' | 'lowest'

/** How much a sandbox wants several processors. */
export interface Demand {
  /** At how many of the last looks, from 0 to 1, of which recent ones count more. */
  share: number
  priority: Priority
}

/** Of a sandbox that has not been looked at, or starts. */
export const noDemand: Demand = { share: 0, priority: 'usual' }
/** The share of its weight that a sandbox with a low priority keeps. */
export const lowShare = 0.1
/** Of a processor. A gateway needs some 11 until it is ready, and ends itself where it gets them too slowly. */
export const startSeconds = 15

/**
 * The processors that a sandbox wants at a look: one at most, several, or more than an agent without an attack keeps
 * wanting.
 */
type Wanted = 'one' | 'several' | 'many'

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
const memorySeconds: Record<Wanted, number> = { one: 5, several: 5, many: 3 }
/** A look that finds several threads, or many, stands for no longer. */
const longestSeconds = 2
/**
 * One that wants several processors at all looks has a low priority after 6 s, and the lowest after 8; one that wants
 * many after 3 s and 5, with looks that are 2 s apart after 4 and 6. One that wants several at two looks in a row, 2 s
 * apart, has the usual one. What it used would not tell: an agent that is given one turn after another uses 0.7 to 1
 * processor, and wants several at 0.2 of the looks, when it collects garbage or begins a thread, for 2 s at most; four
 * processes beside others use 1.1. It wants many at 0.03 of the looks: with a memory of 3 s for these it had a low
 * priority at 11 of 8,900 looks, with 2 s at 41. A program of one thread keeps its share, which is all it gets. Where
 * the use decided, an agent that was given turns had a low priority at 0.7 of the looks at it, and one that filled the
 * disk at 0.04, so that it went before the other.
 */
const least = { low: 0.65, lowest: 0.78 }

/**
 * What a sandbox that uses so much of the processors that it may use wants of them. `countRunnable` counts its threads
 * that compute, or wait for a processor, up to `most`. Where the use tells enough, it may fail.
 */
export async function processorsWanted(
  used: number,
  processors: number,
  countRunnable: (most: number) => Promise<number>,
): Promise<Wanted> {
  if (used <= Math.min(leastUse.share * processors, leastUse.most)) return 'one'
  const threads = await countRunnable(threadsOf.many).catch((error: unknown) => {
    // A program that forks without end can have the `ps` of a container take too long.
    if (used > useOfSeveral) return 0
    throw error
  })
  if (threads >= threadsOf.many) return 'many'
  return used > useOfSeveral || threads >= threadsOf.several ? 'several' : 'one'
}

/** After a look so many seconds after the last one. The lowest priority is kept until not even a low one is due. */
export function demandAfter(last: Demand, seconds: number, wanted: Wanted): Demand {
  const isMore = wanted !== 'one'
  const passed = isMore ? Math.min(seconds, longestSeconds) : seconds
  const share = last.share + (Number(isMore) - last.share) * (1 - Math.exp(-passed / memorySeconds[wanted]))
  if (share < least.low) return { share, priority: 'usual' }
  return { share, priority: last.priority === 'lowest' || share >= least.lowest ? 'lowest' : 'low' }
}
