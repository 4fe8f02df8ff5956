import {
  type BusyThreads,
  type Demand,
  demandAfter,
  noDemand,
  processorsWanted,
  startSeconds,
} from '#sandbox/processor-demand.ts'

/** Of a processor. A gateway that rests when it has used more is in its start no longer. */
const leastStartSeconds = 5
/** In processors. A gateway that waits for a processor during its start gets more. */
const restingStart = 0.02
/** A look that is older says nothing: another process may have looked, and changed what it gets, in between. */
const longestGapSeconds = 10
/** The priority of a sandbox is applied again after so long: that may fail, and another worker may have looked. */
const repeatSeconds = 10

/** What a sandbox has used at a look. */
interface Used {
  id: string
  /** Of a processor, since some time in the past. */
  seconds: number
  /** How many processors it may use. */
  processors: number
  /** Counts its threads, those that are runnable up to `most`. */
  countBusy(most: number): Promise<BusyThreads>
}

interface Look {
  at: number
  seconds: number
}

interface Seen {
  last: Look
  beforeLast: Look | undefined
  demand: Demand
  appliedAt: number
  /** What it had used when it was last seen to rest. */
  restedAt: number
}

/** What a sandbox has used when its gateway was started, in seconds of a processor; null for one that is gone. */
export type SecondsBefore = (id: string) => Promise<number | null>

export type PriorityWatch = ReturnType<typeof createPriorityWatch>

/**
 * Tells which priority sandboxes have, by what they keep wanting. What a gateway computes for its start does not count.
 * Each look is at all sandboxes.
 */
export function createPriorityWatch(secondsBefore: SecondsBefore) {
  let seen = new Map<string, Seen>()
  async function isInStart(id: string, seconds: number, restedAt: number): Promise<boolean> {
    // The record may just be written, or the sandbox be gone.
    const before = (await secondsBefore(id).catch(() => null)) ?? 0
    return seconds - before <= startSeconds && restedAt - before <= leastStartSeconds
  }

  async function look({ id, seconds, processors, countBusy }: Used, at: number, found: Seen | undefined) {
    const now = { at, seconds }
    const before = found && at - found.last.at < longestGapSeconds ? found : undefined
    const usedSince = (look = now) => (at > look.at ? Math.max(0, seconds - look.seconds) / (at - look.at) : 0)
    const used = usedSince(before?.beforeLast ?? before?.last)
    const isResting = before !== undefined && used <= restingStart
    const restedAt = isResting ? seconds : (before?.restedAt ?? Number.NEGATIVE_INFINITY)
    const isStarting = used > restingStart && (await isInStart(id, seconds, restedAt))
    const demand =
      before && !isStarting
        ? demandAfter(before.demand, at - before.last.at, await processorsWanted(used, processors, countBusy))
        : noDemand
    const { priority } = demand
    // At the first look, too: the process before this one may have changed it.
    const isToApply = priority !== before?.demand.priority || at - before.appliedAt > repeatSeconds
    const appliedAt = isToApply ? at : before.appliedAt
    seen.set(id, { last: now, beforeLast: before?.last, demand, appliedAt, restedAt })
    return { id, used, isStarting, priority, isToApply }
  }

  /**
   * A look at a time, in seconds. `used` of the answer is in processors. The priority of a sandbox is to be applied
   * where `isToApply` says so.
   */
  return async (all: readonly Used[], at = performance.now() / 1000) => {
    const before = seen
    seen = new Map()
    return Promise.all(all.map((one) => look(one, at, before.get(one.id))))
  }
}
