import { lastingUse, severalThreads } from '#sandbox/lasting-use.ts'

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
 * A busy sandbox that has several threads at once that compute, or wait for a processor, at nearly all looks in a window
 * of at least `seconds` and `looks` computes without a pause, and pauses again once it had them at few of them. What it
 * used would not tell: an agent that is given one turn after another uses 0.7 to 1 processor, and four processes beside
 * others use 1.1. Of the looks at these two, 0.13 and all found several such threads. Where the agent had the lowest
 * priority, the slowest of a hundred of its turns took twice as long as usual beside a fork bomb, and 0.8 times without.
 */
const withoutPause = { seconds: 8, looks: 4, share: 0.9, untilShare: 0.5 }

/** Of a sandbox beside others: a low one has much less of the processors, and the lowest what nobody else wants. */
export type Priority = 'usual' | 'low' | 'lowest'

/** What a sandbox has used at a look. */
export interface Used {
  id: string
  /** Of a processor, since some time in the past. */
  seconds: number
  /** How many processors it may use. */
  processors: number
  /** Counts its threads that compute, or wait for a processor, up to `most`. */
  countRunnable(most: number): Promise<number>
}

interface Look {
  at: number
  seconds: number
}

/** A window of `withoutPause`. */
interface Window {
  from: number
  looks: number
  /** Those that found so many threads. */
  crowded: number
}

interface Seen {
  /** Those of the last seconds. */
  looks: Look[]
  priority: Priority
  /** Of no meaning with the usual priority. */
  window: Window
  appliedAt: number
  /** What it had used when it was last seen to rest. */
  restedAt: number
}

/** What a sandbox has used when its gateway was started, in seconds of a processor; null for one that is gone. */
export type SecondsBefore = (id: string) => Promise<number | null>

export type BusyWatch = ReturnType<typeof createBusyWatch>

/**
 * Tells which sandboxes are busy, and have a low priority: they have computed nearly without a pause between the look
 * before the last and this one, or as much as one thread can for 3 s, until they compute less. Those that go on with
 * several threads, for 8 to 16 s, have the lowest. What a gateway computes for its start does not count. Each look is at
 * all sandboxes.
 */
export function createBusyWatch(secondsBefore: SecondsBefore) {
  let seen = new Map<string, Seen>()
  async function isInStart(id: string, seconds: number, restedAt: number): Promise<boolean> {
    // The record may just be written, or the sandbox be gone.
    const before = (await secondsBefore(id).catch(() => null)) ?? 0
    return seconds - before <= startSeconds.most && restedAt - before <= startSeconds.least
  }

  /** The priority of a busy sandbox after a look, and the window of the next one. */
  async function busyPriority(last: Priority, window: Window, at: number, countRunnable: Used['countRunnable']) {
    const isCrowded = (await countRunnable(severalThreads)) >= severalThreads
    const [looks, crowded] = [window.looks + 1, window.crowded + Number(isCrowded)]
    const isOver = at - window.from >= withoutPause.seconds && looks >= withoutPause.looks
    if (!isOver) return { priority: last, window: { ...window, looks, crowded } }
    const share = last === 'lowest' ? withoutPause.untilShare : withoutPause.share
    const priority: Priority = crowded >= share * looks ? 'lowest' : 'low'
    return { priority, window: { from: at, looks: 0, crowded: 0 } }
  }

  async function look({ id, seconds, processors, countRunnable }: Used, at: number, found: Seen | undefined) {
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
    const window = wasBusy ? last.window : { from: at, looks: 0, crowded: 0 }
    const busy = isBusy ? await busyPriority(wasBusy ? last.priority : 'low', window, at, countRunnable) : null
    const priority = busy?.priority ?? 'usual'
    // At the first look, too: the process before this one may have changed it.
    const isToApply = priority !== last?.priority || at - last.appliedAt > repeatSeconds
    // What it used until it was busy says nothing of what it asks for since; nor does what it used in its start.
    const isNewlyBusy = isBusy && !wasBusy
    const inLongTime = looks.filter((look) => look === longAgo || at - look.at < longSeconds)
    const kept = isNewlyBusy ? [] : isStarting ? looks.slice(-1) : inLongTime
    seen.set(id, {
      looks: [...kept, now],
      priority,
      window: busy?.window ?? window,
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
