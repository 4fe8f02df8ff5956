import { setTimeout as sleep } from 'node:timers/promises'
import { isDeepStrictEqual } from 'node:util'
import { and, eq, gt, inArray, sql } from 'drizzle-orm'
import pMap, { pMapIterable } from 'p-map'
import { type Instance, instances } from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { raiseGeneration } from '#instances/intent.ts'
import { isIn } from '#instances/regions.ts'
import { isFree, isRunningAndFree, isSettled, publicStatus } from '#instances/status.ts'
import { probeHealth } from '#openclaw/health.ts'
import { isId } from '#platform/ids.ts'
import { inPages } from '#platform/pages.ts'
import type { PeriodicTask } from '#platform/periodic.ts'
import { type Endpoint, type Listed, SandboxUnavailableError } from '#sandbox/driver.ts'
import { collectIds } from './listed-ids.ts'
import type { LifecycleDeps } from './reconcile.ts'
import { type Cursor, firstCursor, inShardOrder, isInRange, type ShardRange, shard } from './shards.ts'

/** A platform that hangs for longer is asked again in the next run. */
const timeoutMs = 60_000
/** So long the ends of gateways are followed before they are followed anew. */
const followMs = 10 * 60_000
/** Sandboxes that are looked at at the same time. */
const concurrency = 16
const probeTimeoutMs = 3000
/** Failed probes of a gateway in a row until a worker diagnoses it, which takes half a minute for one that hangs. */
const maxFailedProbes = 2
/** How long a gateway must have been healthy until its attempts are reset. */
const healthyMinutes = 10
const batch = 1000
/** Gateways that one run asks. */
const maxLooks = 100
/** Pages that one run reads for them, where many rows are of other regions or not to be looked at now. */
const maxPages = 10
/** The pause between two comparisons grows with the number of sandboxes, until there is one in a minute. */
const pausePerSandboxMs = 10
const maxPauseMs = 40_000
/** Over this time a comparison of many pages is spread, but for the one at the start, for which the worker waits. */
const spreadMs = 20_000

const firstId = firstCursor.id

const isLoggedOutage = (error: unknown) => error instanceof SandboxUnavailableError && error.isLogged

/** What a look at a row needs. */
const lookColumns = {
  id: instances.id,
  organizationId: instances.organizationId,
  generation: instances.generation,
  endpoint: sql<Endpoint | null>`${instances.endpoint}`,
  hasRelayToken: sql<boolean>`${instances.relayTokenHash} IS NOT NULL`,
}
interface LookedAt extends Pick<Instance, 'id' | 'organizationId' | 'generation'> {
  endpoint: Endpoint | null
  hasRelayToken: boolean
}

export interface DriftDetection {
  /** Compares, if this is the first worker of the region, and looks at the next gateways, at once. */
  detect(signal: AbortSignal): Promise<void>
  /** Looks again at gateways that did not answer, and at the next ones of this worker's shards. */
  lookAtNext(signal: AbortSignal): Promise<void>
  tasks(everyMs: number): PeriodicTask[]
}

/**
 * Compares rows with their sandboxes, and raises the generation of rows that differ so that workers repair them. It
 * never changes a sandbox. A platform that cannot be reached is no evidence of drift.
 *
 * The first of the workers of a region compares all rows with the list of all sandboxes; each looks at the gateways of
 * its shards, a part in each run; and a gateway whose end the platform tells is looked at at once.
 */
export function createDriftDetection(deps: LifecycleDeps, rangeOfThis: () => ShardRange): DriftDetection {
  const { db, sandboxes, queue, log } = deps
  /** Gateways that did not answer, or have ended while a worker had them, with their failed probes in a row. */
  const suspects = new Map<string, number>()
  const reportedOrphans = new Set<string>()
  let leftOverBefore = new Set<string>()
  let sandboxCount = 0
  let cursor = firstCursor

  const isRunningHere = () => and(isRunningAndFree, isIn(deps))
  const findRunning = async (ids: readonly string[]): Promise<LookedAt[]> =>
    ids.length === 0
      ? []
      : db
          .select(lookColumns)
          .from(instances)
          .where(and(inArray(instances.id, [...ids]), isRunningHere()))

  async function makeDue(
    row: Pick<Instance, 'id' | 'organizationId' | 'generation'>,
    reason: string,
    silent = false,
  ): Promise<void> {
    suspects.delete(row.id)
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
      .returning({ generation: instances.generation })
    if (!raised) return
    log.warn({ instanceId: row.id, organizationId: row.organizationId, generation: raised.generation }, reason)
    queue.enqueue()
  }

  /** Asks the platform only about a gateway that does not answer: the comparison finds what else has changed. */
  async function look(row: LookedAt, signal: AbortSignal): Promise<void> {
    const { endpoint } = row
    if (endpoint && (await probeHealth(endpoint, '/healthz', { timeoutMs: probeTimeoutMs, signal }))) {
      suspects.delete(row.id)
      return
    }
    const difference = await findDifference(row, signal)
    if (difference) return makeDue(row, difference)
    const failures = (suspects.get(row.id) ?? 0) + 1
    suspects.set(row.id, failures)
    // A busy gateway is looked at again and again: only what the worker finds and does is an event.
    if (failures >= maxFailedProbes) await makeDue(row, 'the gateway does not answer', true)
  }

  async function findDifference(row: LookedAt, signal: AbortSignal): Promise<string | null> {
    const { state, endpoint } = await sandboxes.observe(row.id, signal)
    if (state !== 'running') return 'the sandbox does not run any more'
    if (endpoint && !isDeepStrictEqual(endpoint, row.endpoint)) return 'the gateway has another address'
    return row.hasRelayToken ? null : 'the gateway has no token for the relay'
  }

  async function examine(row: LookedAt, signal: AbortSignal): Promise<void> {
    const difference = await findDifference(row, signal)
    if (difference) await makeDue(row, difference)
  }

  const forEach = <Row extends { id: string }>(
    rows: readonly Row[],
    run: (row: Row) => Promise<void>,
    signal: AbortSignal,
  ) =>
    pMap(
      rows,
      (row) =>
        run(row).catch((err: unknown) => {
          if (!isLoggedOutage(err))
            log.warn({ err, instanceId: row.id }, 'could not compare an instance with its sandbox')
        }),
      { concurrency, signal },
    )

  async function lookAtNext(signal: AbortSignal): Promise<void> {
    const again = [...suspects.keys()].slice(0, batch)
    const known = await findRunning(again)
    const found = new Set(known.map(({ id }) => id))
    // The others were stopped, deleted or worked on meanwhile.
    for (const id of again) if (!found.has(id)) suspects.delete(id)
    const next = (await readNext()).filter(({ id }) => !found.has(id))
    await forEach([...known.slice(0, maxLooks), ...next], (row) => look(row, signal), signal)
  }

  /**
   * The next rows of this worker's shards. What no index has is a column here, not a condition: PostgreSQL expects such
   * conditions to leave so few rows that it reads and sorts all of the shards instead of a page in their order.
   */
  async function readNext(): Promise<LookedAt[]> {
    const next: (LookedAt & Cursor)[] = []
    for (let page = 0; page < maxPages; page += 1) {
      const rows = await db
        .select({ ...lookColumns, shard, isToLookAt: sql<boolean>`${isRunningHere()}` })
        .from(instances)
        .where(and(eq(instances.desiredState, 'running'), isInRange(rangeOfThis(), cursor)))
        .orderBy(...inShardOrder)
        .limit(maxLooks)
      next.push(...rows.filter(({ isToLookAt }) => isToLookAt).slice(0, maxLooks - next.length))
      const isFull = next.length === maxLooks
      const last = isFull ? next.at(-1) : rows.length === maxLooks && rows.at(-1)
      cursor = last || firstCursor
      if (isFull || !last) break
    }
    return next
  }

  /**
   * Compares all rows and all sandboxes of the region, without a call of the platform for each. It reads the list and the
   * rows in pages, and keeps of the list no more than the ids.
   */
  async function compare(overMs: number, signal: AbortSignal): Promise<void> {
    const pauseMs = sandboxCount > batch ? overMs / (sandboxCount / batch) / 2 : 0
    const ids = collectIds()
    const leftOver: Instance[] = []
    for await (const page of inPages(sandboxes.list(signal), batch)) {
      ids.add(page.map(({ id }) => id))
      leftOver.push(...(await compareListed(page, signal)))
      await sleep(pauseMs, undefined, { signal })
    }
    const listed = ids.sorted()
    sandboxCount = listed.size
    for (const id of reportedOrphans) if (!listed.has(id)) reportedOrphans.delete(id)
    await checkLeftOver(leftOver, signal)
    for (let after = firstId; ; ) {
      const running = await runningIds(after)
      const missing = await findRunning(running.filter((id) => !listed.has(id)))
      await forEach(missing, (row) => examine(row, signal), signal)
      const last = running.at(-1)
      if (last === undefined || running.length < batch) return
      after = last
      await sleep(pauseMs, undefined, { signal })
    }
  }

  const runningIds = async (after: string) =>
    (
      await db
        .select({ id: instances.id })
        .from(instances)
        .where(and(isRunningHere(), gt(instances.id, after)))
        .orderBy(instances.id)
        .limit(batch)
    ).map(({ id }) => id)

  /**
   * Looks at the rows of listed sandboxes that should run and differ. Returns the rows of the other sandboxes that may be
   * left over of them.
   */
  async function compareListed(page: readonly Listed[], signal: AbortSignal): Promise<Instance[]> {
    const listed = page.filter(({ id }) => isId(id))
    const unlike = await findUnlike(listed)
    if (unlike.length === 0) return []
    const running = await findRunning(unlike)
    await forEach(running, (row) => examine(row, signal), signal)
    const isRunning = new Set(running.map(({ id }) => id))
    const ids = unlike.filter((id) => !isRunning.has(id))
    const others = await db.select().from(instances).where(inArray(instances.id, ids))
    const known = new Set(others.map(({ id }) => id))
    for (const id of ids) if (!known.has(id)) reportOrphan(id)
    const states = new Map(listed.map(({ id, state }) => [id, state]))
    return others.filter((row) => isSettled(row) && isLeftOver(row, states.get(row.id)))
  }

  /**
   * Of listed sandboxes the ids of those whose row does not say that they run as they do. The database compares them:
   * nearly all rows are alike, and reading them costs a worker memory.
   */
  async function findUnlike(listed: readonly Listed[]): Promise<string[]> {
    const ids = sql`${sql.param(listed.map(({ id }) => id))}::uuid[]`
    const states = sql`${sql.param(listed.map(({ state }) => state))}::text[]`
    const endpoints = sql`${sql.param(listed.map(({ endpoint }) => endpoint && JSON.stringify(endpoint)))}::jsonb[]`
    const { rows } = await db.execute<{ id: string }>(sql`
      SELECT listed.id FROM unnest(${ids}, ${states}, ${endpoints}) AS listed (id, state, endpoint)
      LEFT JOIN instances ON instances.id = listed.id AND ${isRunningHere()}
      WHERE instances.id IS NULL OR listed.state <> 'running' OR instances.relay_token_hash IS NULL
        OR (listed.endpoint IS NOT NULL AND listed.endpoint IS DISTINCT FROM instances.endpoint)`)
    return rows.map(({ id }) => id)
  }

  async function checkLeftOver(leftOver: readonly Instance[], signal: AbortSignal): Promise<void> {
    const before = leftOverBefore
    leftOverBefore = new Set(leftOver.map(({ id }) => id))
    const check = async (row: Instance) => {
      // The list may be older than the row. Remains that only the list shows, a volume, must be in the next list too.
      const { state } = await sandboxes.observe(row.id, signal)
      const isConfirmed = isLeftOver(row, state) && (state !== 'absent' || before.has(row.id))
      if (isConfirmed) await makeDue(row, 'a sandbox was left over')
    }
    await forEach(leftOver, check, signal)
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
          isRunningHere(),
          sql`${instances.attempts} > 0`,
          sql`${instances.readyAt} < now() - make_interval(mins => ${healthyMinutes})`,
        ),
      )

  const unlessLogged = async (run: Promise<void>) => {
    await run.catch((error: unknown) => {
      if (!isLoggedOutage(error)) throw error
    })
  }

  /** Where a worker has the row, which may have ended the gateway itself, the next look is at this one too. */
  async function lookAtEnded(id: string, signal: AbortSignal): Promise<void> {
    suspects.set(id, suspects.get(id) ?? 0)
    const rows = await findRunning([id]).catch(() => [])
    await forEach(rows, (row) => examine(row, signal), signal)
  }

  async function followEnds(signal: AbortSignal): Promise<void> {
    if (!sandboxes.ends) return
    const ended = pMapIterable(sandboxes.ends(signal), (id) => lookAtEnded(id, signal), { concurrency })
    for await (const _ of ended) signal.throwIfAborted()
  }

  const isFirst = () => rangeOfThis().index === 0
  const compareIfFirst = async (overMs: number, signal: AbortSignal) => {
    if (!isFirst()) return
    await unlessLogged(compare(overMs, signal))
    await resetAttempts()
  }

  return {
    async detect(signal) {
      await compareIfFirst(0, signal)
      await unlessLogged(lookAtNext(signal))
    },
    lookAtNext,
    tasks: (everyMs) => [
      {
        name: 'compare_sandboxes',
        everyMs: () => Math.max(everyMs, Math.min(sandboxCount * pausePerSandboxMs, maxPauseMs)),
        timeoutMs,
        run: (signal) => compareIfFirst(spreadMs, signal),
      },
      { name: 'probe_gateways', everyMs, timeoutMs, run: (signal) => unlessLogged(lookAtNext(signal)) },
      {
        name: 'follow_gateway_ends',
        everyMs,
        timeoutMs: followMs + timeoutMs,
        run: async (signal) => {
          const over = AbortSignal.timeout(followMs)
          await unlessLogged(followEnds(AbortSignal.any([signal, over]))).catch((error: unknown) => {
            if (!over.aborted) throw error
          })
        },
      },
    ],
  }
}
