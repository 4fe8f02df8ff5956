import pTimeout from 'p-timeout'
import { claimDue, firstId } from '#instances/claim.ts'
import { regionOf } from '#instances/regions.ts'
import { createPlaces, placesOf } from '#lifecycle/attempt/places.ts'
import { reconcileInstance, type WorkerDeps } from '#lifecycle/attempt/reconcile.ts'
import type { Shards } from './shards.ts'

/** An attempt that takes longer is waiting, e.g. for a gateway: its slot is freed for another row. */
const slotMs = 1000
/** Pause before a worker that found no row enqueues again: its capacity may have been the reason. */
const enqueueAgainMs = 1000
/** Pause before a worker that took a job for rows of other workers enqueues again. */
const enqueueForOthersMs = 200
const abortedMs = 5000

export interface Claims {
  /** Claims the next due row and works on it. Resolves when the slot is free again; the work may continue. */
  take(): Promise<void>
  /** Claims no more, waits `drainMs` at most for the attempts that run, then aborts them. */
  stop(drainMs: number): Promise<void>
}

/** Claims rows for a worker with `slots` slots, and works on them. */
export function createClaims(
  { db, queue, regions }: WorkerDeps,
  slots: number,
  shards: Pick<Shards, 'areWaitingElsewhere'>,
): Claims {
  const places = createPlaces(placesOf(slots))
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
    const served = regions().filter(({ platformOutage }) => !platformOutage.isAway)
    const scope = { regions: served, afterOrganization, exceptOrganizations }
    const taken = places.free > 0 ? await claimDue(db, scope) : null
    const deps = taken && regionOf(served, taken)
    if (deps) {
      afterOrganization = taken.organizationId
      places.take(taken.organizationId)
      return { deps, taken, takenAt }
    }
    // A due row may exceed this worker's capacity or be served by another worker: enqueue again for another one, or for
    // later.
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

  /** One claim at a time: each claim needs the capacity that earlier claims have used. */
  function claimInTurn() {
    const claimed = latest.then(claim)
    latest = claimed.catch(() => {})
    return claimed
  }

  return {
    async take() {
      const claimed = await claimInTurn()
      if (!claimed) return
      queue.enqueue() // more rows may be due: another free slot takes the job
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
