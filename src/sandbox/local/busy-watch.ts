import { lastingUse } from '#sandbox/lasting-use.ts'

/**
 * In seconds of a processor. A gateway needs some 11 until it is ready, and ends itself where it gets them too slowly:
 * it is in its start until it has used the most, or rests when it has used more than the least.
 */
const startSeconds = { least: 5, most: 15 }
/** In processors. A gateway that waits for a processor during its start gets more. */
const restingStart = 0.02
/** A look that is older says nothing: another process may have looked, and changed what it gets, in between. */
const longestGapSeconds = 10
/** The priority of a sandbox is applied again after so long: that may fail, and another worker may have looked. */
const repeatSeconds = 10
/**
 * In processors. A sandbox that used more for `longSeconds` has computed nearly without a pause, with one thread. The
 * first turn of an agent does so for up to 2 s.
 */
const lastingUseOfThread = 0.8
const longSeconds = 3
/**
 * A busy sandbox is busy no longer when it used less than both, of its processors and of one, for `longSeconds`: it asks
 * for no more, as an agent between its turns, or the others have left it no more, and wait for it in their turn.
 */
const returning = { use: 0.45, useOfThread: 0.65 }
/**
 * A busy sandbox that used more of one processor in a window of `seconds` has no pause, and pauses again once it used
 * less than `untilUse` in one. An agent that is given one turn after another is busy too, since it collects its garbage
 * with several threads at once, and uses 0.7 to 0.8 in the long run. Where it had the lowest priority for that, the
 * slowest of a hundred of its turns took twice as long as usual beside a fork bomb, and 0.8 times without it.
 */
const withoutPause = { seconds: 8, use: 0.9, untilUse: 0.8 }

/** Of a sandbox beside others: a low one has much less of the processors, and the lowest what nobody else wants. */
export type Priority = 'usual' | 'low' | 'lowest'

/** What a sandbox has used at a look. */
export interface Used {
  id: string
  /** Of a processor, since some time in the past. */
  seconds: number
  /** How many processors it may use. */
  processors: number
}

interface Look {
  at: number
  seconds: number
}

interface Seen {
  /** Those of the last seconds. */
  looks: Look[]
  priority: Priority
  /** Where the window of `withoutPause` begins; of no meaning with the usual priority. */
  windowFrom: Look
  appliedAt: number
  /** What it had used when it was last seen to rest. */
  restedAt: number
}

/** What a sandbox has used when its gateway was started, in seconds of a processor; null for one that is gone. */
export type SecondsBefore = (id: string) => Promise<number | null>

export type BusyWatch = ReturnType<typeof createBusyWatch>

/**
 * Tells which sandboxes are busy, and have a low priority: they have computed nearly without a pause between the look
 * before the last and this one, or as much as one thread can for 3 s, until they compute less. Those that go on without a
 * pause for 8 s have the lowest. What a gateway computes for its start does not count. Each look is at all sandboxes.
 */
export function createBusyWatch(secondsBefore: SecondsBefore) {
  let seen = new Map<string, Seen>()
  async function isInStart(id: string, seconds: number, restedAt: number): Promise<boolean> {
    // The record may just be written, or the sandbox be gone.
    const before = (await secondsBefore(id).catch(() => null)) ?? 0
    return seconds - before <= startSeconds.most && restedAt - before <= startSeconds.least
  }

  async function look({ id, seconds, processors }: Used, at: number, found: Seen | undefined) {
    const now = { at, seconds }
    const last = found && at - (found.looks.at(-1)?.at ?? 0) < longestGapSeconds ? found : undefined
    const looks = last?.looks ?? []
    const usedSince = (look = now) => (at > look.at ? Math.max(0, seconds - look.seconds) / (at - look.at) : 0)
    const used = usedSince(looks.at(-2) ?? looks.at(-1))
    const isResting = last !== undefined && used <= restingStart
    const restedAt = isResting ? seconds : (last?.restedAt ?? Number.NEGATIVE_INFINITY)
    const isStarting = used > restingStart && (await isInStart(id, seconds, restedAt))
    const wasBusy = last !== undefined && last.priority !== 'usual'
    const longAgo = looks.findLast((look) => at - look.at >= longSeconds)
    const usedLong = longAgo && usedSince(longAgo)
    const isBusy =
      !isStarting &&
      (wasBusy
        ? usedLong === undefined || usedLong > Math.min(returning.use * processors, returning.useOfThread)
        : used > lastingUse * processors || (usedLong ?? 0) > lastingUseOfThread)
    const busyPriority = wasBusy ? last.priority : 'low'
    const windowFrom = wasBusy ? last.windowFrom : now
    const isWindowOver = at - windowFrom.at >= withoutPause.seconds
    const bound = busyPriority === 'lowest' ? withoutPause.untilUse : withoutPause.use
    const hasNoPause = usedSince(windowFrom) > bound * Math.min(1, processors)
    const seenPriority = isWindowOver ? (hasNoPause ? 'lowest' : 'low') : busyPriority
    const priority = isBusy ? seenPriority : 'usual'
    // At the first look, too: the process before this one may have changed it.
    const isToApply = priority !== last?.priority || at - last.appliedAt > repeatSeconds
    // What it used until it was busy says nothing of what it asks for since; nor does what it used in its start.
    const isNewlyBusy = isBusy && !wasBusy
    const inLongTime = looks.filter((look) => look === longAgo || at - look.at < longSeconds)
    const kept = isNewlyBusy ? [] : isStarting ? looks.slice(-1) : inLongTime
    seen.set(id, {
      looks: [...kept, now],
      priority,
      windowFrom: isWindowOver ? now : windowFrom,
      appliedAt: isToApply ? at : last.appliedAt,
      restedAt,
    })
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
