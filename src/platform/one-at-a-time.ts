import { AppError } from './errors.ts'
import { texts } from './texts.ts'

/** What waits longer is refused when its turn comes: whatever is before it takes far too long. */
const maxWaitMs = 15_000

/** The last of each owner, which settles when everything before it has. */
const last = new Map<string, Promise<unknown>>()

/**
 * Runs what is asked for one owner one after the other, in the order of the calls, so that an owner who asks for much at
 * once takes one connection to the database, and no more of its processors. Everything asked must end by itself, and what
 * waits must be bounded by the caller. Rejects as `act` does, or with AppError `overloaded` after a wait of 15 s.
 */
export function oneAtATime<T>(owner: string, act: () => Promise<T>): Promise<T> {
  const askedAt = performance.now()
  const result = (last.get(owner) ?? Promise.resolve()).then(() => {
    if (performance.now() - askedAt > maxWaitMs)
      throw new AppError('overloaded', texts.tooManyLists, { retryAfterSeconds: 1 })
    return act()
  })
  const ended: Promise<void> = result
    .then(
      () => {},
      () => {},
    )
    .then(() => {
      if (last.get(owner) === ended) last.delete(owner)
    })
  last.set(owner, ended)
  return result
}
