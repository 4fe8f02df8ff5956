import pTimeout from 'p-timeout'
import { claimDue, firstId } from '#instances/claim.ts'
import { regionOf } from '#instances/regions.ts'
import { createPlaces } from './places.ts'
import { reconcileInstance, type WorkerDeps } from './reconcile.ts'
import type { Shards } from './shards.ts'

/** An attempt that takes longer waits for something, such as a gateway: its slot is free for another row. */
const slotMs = 1000
/** How soon a worker enqueues again that has found no row, perhaps because its places did not suffice. */
const enqueueAgainMs = 1000
/** The same for a worker that has taken a job for rows that others serve. */
const enqueueForOthersMs = 200
const abortedMs = 5000

export interface Claims {
  /** Claims the next due row and works on it. Resolves when the slot is free again; the work may continue. */
  take(): Promise<void>
  /** Claims no more, waits `drainMs` at most for the attempts that run, then aborts them. */
  stop(drainMs: number): Promise<void>
}

/** Claims rows for a worker with so many slots, and works on them. */
export function createClaims(
  { db, queue, regions }: WorkerDeps,
  slots: number,
  shards: Pick<Shards, 'areWaitingElsewhere'>,
): Claims {
  const places = createPlaces(slots)
  const aborting = new AbortController()
  const attempts = new Set<Promise<void>>()
  let isStopping = false
  let afterOrganization = firstId
  let latest: Promise<unknown> = Promise.resolve()
  let again: NodeJS.Timeout | undefined

  async function claim() {
    if (isStopping) return null
    const exceptOrganizations = places.full()
    const takenAt = performance.now()
    const served = regions()
    const scope = { regions: served, afterOrganization, exceptOrganizations }
    const taken = places.free > 0 ? await claimDue(db, scope) : null
    const deps = taken && regionOf(served, taken)
    if (deps) {
      afterOrganization = taken.organizationId
      places.take(taken.organizationId)
      return { deps, taken, takenAt }
    }
    // A row may be due that this worker has no place for, or does not serve: another one shall look, or this one later.
    if (exceptOrganizations.length > 0) again ??= setTimeout(enqueueAgain, enqueueAgainMs)
    else if (await shards.areWaitingElsewhere()) again ??= setTimeout(enqueueAgain, enqueueForOthersMs)
    return null
  }

  function enqueueAgain(): void {
    if (!again) return
    clearTimeout(again)
    again = undefined
    queue.enqueue()
  }

  /** One after another: each claim knows the places that those before have taken. */
  function claimInTurn() {
    const claimed = latest.then(claim)
    latest = claimed.catch(() => {})
    return claimed
  }

  return {
    async take() {
      const claimed = await claimInTurn()
      if (!claimed) return
      queue.enqueue() // there may be more: for the next free slot of any worker
      const { deps, taken, takenAt } = claimed
      const attempt = reconcileInstance(deps, taken, takenAt, aborting.signal)
        .catch(() => {}) // its lease was lost, or the database is away: the row is due
        .finally(() => {
          attempts.delete(attempt)
          places.leave(taken.organizationId)
          enqueueAgain()
        })
      attempts.add(attempt)
      await pTimeout(attempt, { milliseconds: slotMs, message: false })
    },
    async stop(drainMs) {
      isStopping = true
      clearTimeout(again)
      again = undefined
      await latest
      const ended = Promise.all(attempts)
      await pTimeout(ended, { milliseconds: drainMs, message: false })
      aborting.abort(new Error('the worker is ending'))
      await pTimeout(ended, { milliseconds: abortedMs, message: false })
    },
  }
}
