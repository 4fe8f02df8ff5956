import { isDeepStrictEqual } from 'node:util'
import { and, eq, inArray, sql } from 'drizzle-orm'
import pMap from 'p-map'
import { type Instance, instances } from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { raiseGeneration } from '#instances/intent.ts'
import { isIn } from '#instances/regions.ts'
import { isFree, isRunningAndFree, isSettled, publicStatus } from '#instances/status.ts'
import { probeHealth } from '#openclaw/health.ts'
import { isId } from '#platform/ids.ts'
import { SandboxUnavailableError } from '#sandbox/driver.ts'
import type { LifecycleDeps } from './reconcile.ts'

/** Sandboxes that are checked at the same time. */
const concurrency = 16
const probeTimeoutMs = 3000
/** Failed probes of a gateway in a row until a worker diagnoses it, which takes half a minute for one that hangs. */
const maxFailedProbes = 2
/** How long a gateway must have been healthy until its attempts are reset. */
const healthyMinutes = 10
const batch = 1000

const isLoggedOutage = (error: unknown) => error instanceof SandboxUnavailableError && error.isLogged

/**
 * Returns a function that compares rows with their sandboxes, and raises the generation of rows that differ so that
 * workers repair them. It never changes a sandbox. A platform that cannot be reached is no evidence of drift.
 */
export function createDriftDetector(deps: LifecycleDeps) {
  const { db, sandboxes, queue, log } = deps
  const failedProbes = new Map<string, number>()
  const reportedOrphans = new Set<string>()
  let leftOverBefore = new Set<string>()

  async function makeDue(row: Instance, reason: string, silent = false): Promise<void> {
    failedProbes.delete(row.id)
    const [raised] = await db
      .update(instances)
      .set({
        ...raiseGeneration('drift'),
        changedBy: changedBy({ type: 'instance.due', reason, silent }),
      })
      .where(
        and(
          eq(instances.id, row.id),
          eq(instances.generation, row.generation),
          eq(instances.observedGeneration, row.generation),
          isFree,
        ),
      )
      .returning()
    if (!raised) return
    log.warn({ instanceId: row.id, organizationId: row.organizationId, generation: raised.generation }, reason)
    queue.enqueue()
  }

  async function checkRunningRow(row: Instance, signal: AbortSignal): Promise<void> {
    const { state, endpoint } = await sandboxes.observe(row.id, signal)
    if (state !== 'running') return makeDue(row, 'the sandbox does not run any more')
    if (endpoint && !isDeepStrictEqual(endpoint, row.endpoint)) return makeDue(row, 'the gateway has another address')
    if (row.relayTokenHash === null) return makeDue(row, 'the gateway has no token for the relay')
    if (endpoint && (await probeHealth(endpoint, '/healthz', { timeoutMs: probeTimeoutMs, signal }))) {
      failedProbes.delete(row.id)
      return
    }
    const failures = (failedProbes.get(row.id) ?? 0) + 1
    failedProbes.set(row.id, failures)
    // A busy gateway is looked at again and again: only what the worker finds and does is an event.
    if (failures >= maxFailedProbes) await makeDue(row, 'the gateway does not answer', true)
  }

  const checkEach = (rows: readonly Instance[], check: (row: Instance) => Promise<void>, signal: AbortSignal) =>
    pMap(
      rows,
      (row) =>
        check(row).catch((err: unknown) => {
          if (!isLoggedOutage(err))
            log.warn({ err, instanceId: row.id }, 'could not compare an instance with its sandbox')
        }),
      { concurrency, signal },
    )

  /** Checks the rows that are running and at rest, page by page. */
  async function checkRunningRows(signal: AbortSignal): Promise<void> {
    const checked = new Set<string>()
    let after = '00000000-0000-0000-0000-000000000000'
    for (;;) {
      const rows = await db
        .select()
        .from(instances)
        .where(and(isRunningAndFree, isIn(deps), sql`${instances.id} > ${after}`))
        .orderBy(instances.id)
        .limit(batch)
      await checkEach(rows, (row) => checkRunningRow(row, signal), signal)
      for (const { id } of rows) checked.add(id)
      const last = rows.at(-1)
      if (!last || rows.length < batch) break
      after = last.id
    }
    // The others were stopped, deleted or worked on meanwhile.
    for (const id of failedProbes.keys()) if (!checked.has(id)) failedProbes.delete(id)
  }

  /** Checks all sandboxes: some may be left over of instances that have ended, others have no row at all. */
  async function checkSandboxes(signal: AbortSignal): Promise<void> {
    const found = new Map<string, string>()
    for await (const { id, state } of sandboxes.list(signal)) found.set(id, state)
    for (const id of reportedOrphans) if (!found.has(id)) reportedOrphans.delete(id)
    const ids = [...found.keys()].filter(isId)
    const leftOver: Instance[] = []
    for (let start = 0; start < ids.length; start += batch) {
      const page = ids.slice(start, start + batch)
      const rows = new Map(
        (await db.select().from(instances).where(inArray(instances.id, page))).map((row) => [row.id, row]),
      )
      for (const id of page) {
        const row = rows.get(id)
        if (!row) reportOrphan(id)
        else if (isSettled(row) && isLeftOver(row, found.get(id))) leftOver.push(row)
      }
    }
    const before = leftOverBefore
    leftOverBefore = new Set(leftOver.map(({ id }) => id))
    const check = async (row: Instance) => {
      // The list may be older than the row. Remains that only the list shows, a volume, must be in the next list too.
      const { state } = await sandboxes.observe(row.id, signal)
      const isConfirmed = isLeftOver(row, state) && (state !== 'absent' || before.has(row.id))
      if (isConfirmed) await makeDue(row, 'a sandbox was left over')
    }
    await checkEach(leftOver, check, signal)
  }

  const isLeftOver = (row: Instance, state: string | undefined): boolean => {
    const status = publicStatus(row)
    return status === 'terminated' || ((status === 'stopped' || status === 'error') && state === 'running')
  }

  function reportOrphan(id: string): void {
    if (reportedOrphans.has(id)) return
    reportedOrphans.add(id)
    log.error({ sandbox: id }, 'found a sandbox without an instance; it is not touched')
  }

  const resetAttempts = () =>
    db
      .update(instances)
      .set({ attempts: 0 })
      .where(
        and(
          isRunningAndFree,
          isIn(deps),
          sql`${instances.attempts} > 0`,
          sql`${instances.readyAt} < now() - make_interval(mins => ${healthyMinutes})`,
        ),
      )

  return async (signal: AbortSignal): Promise<void> => {
    try {
      await checkRunningRows(signal)
      await checkSandboxes(signal)
    } catch (error) {
      if (!isLoggedOutage(error)) throw error
    }
    await resetAttempts()
  }
}
