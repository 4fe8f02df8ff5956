import { isDeepStrictEqual } from 'node:util'
import { and, eq, inArray, sql } from 'drizzle-orm'
import { type Instance, instances } from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { raiseGeneration } from '#instances/intent.ts'
import { isFree, isRunningAtRest, isSettled, publicStatus } from '#instances/status.ts'
import { probeHealth } from '#openclaw/health.ts'
import { isId } from '#platform/ids.ts'
import type { LifecycleDeps } from './reconcile.ts'

/** Sandboxes looked at side by side. */
const lanes = 16
const probeTimeoutMs = 3000
/** Looks in a row without an answer before a worker has a closer one. */
const silentLooks = 3
/** How long a gateway must have been healthy for its earlier failures to be forgotten. */
const forgivenAfterMinutes = 10
const batch = 1000

/**
 * Compares what should be with what is, and raises the generation of rows that are not as they should be: the same
 * loop repairs them. It never touches a sandbox.
 */
export function createDriftDetector(deps: LifecycleDeps) {
  const { db, sandboxes, queue, log } = deps
  const silences = new Map<string, number>()
  const reported = new Set<string>()
  let listedBefore = new Set<string>()

  async function makeDue(row: Instance, reason: string): Promise<void> {
    const [raised] = await db
      .update(instances)
      .set({
        ...raiseGeneration('drift'),
        changedBy: changedBy({ type: 'instance.due', reason }),
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
    queue.enqueue(raised)
  }

  async function lookAt(row: Instance, signal: AbortSignal): Promise<void> {
    const { state, endpoint } = await sandboxes.observe(row.id, signal)
    if (state !== 'running') {
      silences.delete(row.id)
      return makeDue(row, 'the sandbox does not run any more')
    }
    if (endpoint && !isDeepStrictEqual(endpoint, row.endpoint)) {
      silences.delete(row.id)
      return makeDue(row, 'the gateway is somewhere else now')
    }
    if (endpoint && (await probeHealth(endpoint, '/healthz', { timeoutMs: probeTimeoutMs, signal }))) {
      silences.delete(row.id)
      return
    }
    const silent = (silences.get(row.id) ?? 0) + 1
    silences.set(row.id, silent)
    if (silent < silentLooks) return
    silences.delete(row.id)
    await makeDue(row, 'the gateway does not answer')
  }

  async function inLanes<T>(items: readonly T[], look: (item: T) => Promise<void>, signal: AbortSignal): Promise<void> {
    const queue = items.values()
    const lane = async () => {
      for (const item of queue) {
        signal.throwIfAborted()
        // A platform that cannot be reached says nothing about the sandbox: nothing is done.
        await look(item).catch((error: unknown) => log.warn({ err: error }, 'could not look for drift'))
      }
    }
    await Promise.all(Array.from({ length: lanes }, lane))
  }

  /** Rows that are running and at rest, page by page, against their sandboxes. */
  async function lookAtRunning(signal: AbortSignal): Promise<void> {
    let after = '00000000-0000-0000-0000-000000000000'
    for (;;) {
      const rows = await db
        .select()
        .from(instances)
        .where(and(isRunningAtRest, eq(instances.sandboxDriver, sandboxes.name), sql`${instances.id} > ${after}`))
        .orderBy(instances.id)
        .limit(batch)
      await inLanes(rows, (row) => lookAt(row, signal), signal)
      const last = rows.at(-1)
      if (!last || rows.length < batch) return
      after = last.id
    }
  }

  /** Sandboxes against their rows: what runs though it should not, and what no row speaks of. */
  async function lookAtSandboxes(signal: AbortSignal): Promise<void> {
    const found = new Map<string, string>()
    for await (const { id, state } of sandboxes.list(signal)) found.set(id, state)
    const ids = [...found.keys()].filter(isId)
    const leftOver: Instance[] = []
    for (let start = 0; start < ids.length; start += batch) {
      const page = ids.slice(start, start + batch)
      const rows = new Map(
        (await db.select().from(instances).where(inArray(instances.id, page))).map((row) => [row.id, row]),
      )
      for (const id of page) {
        const row = rows.get(id)
        if (!row) report(id)
        else if (isSettled(row) && isLeftOver(row, found.get(id))) leftOver.push(row)
      }
    }
    const before = listedBefore
    listedBefore = new Set(leftOver.map(({ id }) => id))
    const look = async (row: Instance) => {
      // The list may be older than the row. Of what a list alone shows, a volume, the next one has to show it again.
      const { state } = await sandboxes.observe(row.id, signal)
      const isStillThere = isLeftOver(row, state) && (state !== 'absent' || before.has(row.id))
      if (isStillThere) await makeDue(row, 'a sandbox was left over')
    }
    await inLanes(leftOver, look, signal)
  }

  const isLeftOver = (row: Instance, state: string | undefined): boolean => {
    const status = publicStatus(row)
    return status === 'terminated' || ((status === 'stopped' || status === 'error') && state === 'running')
  }

  function report(id: string): void {
    if (reported.has(id)) return
    reported.add(id)
    log.error({ sandbox: id }, 'a sandbox without an instance: it is left alone')
  }

  const forgive = () =>
    db
      .update(instances)
      .set({ attempts: 0 })
      .where(
        and(
          isRunningAtRest,
          eq(instances.sandboxDriver, sandboxes.name),
          sql`${instances.attempts} > 0`,
          sql`${instances.readyAt} < now() - make_interval(mins => ${forgivenAfterMinutes})`,
        ),
      )

  return async (signal: AbortSignal): Promise<void> => {
    await lookAtRunning(signal)
    await lookAtSandboxes(signal)
    await forgive()
  }
}
