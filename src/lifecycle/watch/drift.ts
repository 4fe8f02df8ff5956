import { setTimeout as sleep } from 'node:timers/promises'
import { isDeepStrictEqual } from 'node:util'
import { and, eq, gt, inArray, sql } from 'drizzle-orm'
import pMap, { pMapIterable } from 'p-map'
import { type Instance, instances } from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { raiseGeneration } from '#instances/intent.ts'
import { isIn } from '#instances/regions.ts'
import { isFree, isRunningAndFree, isSettled, maySleepFrozen, publicStatus } from '#instances/status.ts'
import type { LifecycleDeps } from '#lifecycle/attempt/reconcile.ts'
import { type Cursor, firstCursor, inShardOrder, isInRange, type ShardRange, shard } from '#lifecycle/queue/shards.ts'
import { probeHealth } from '#openclaw/gateway/health.ts'
import { isId } from '#platform/ids.ts'
import { inPages } from '#platform/pages.ts'
import type { PeriodicTask } from '#platform/periodic.ts'
import { type Endpoint, type Listed, SandboxUnavailableError } from '#sandbox/driver.ts'
import { collectIds } from './listed-ids.ts'

/** A platform that hangs longer is asked again in the next run. */
const timeoutMs = 60_000
/** The stream of ended gateways is reopened after this time. */
const followMs = 10 * 60_000
/** Sandboxes compared or probed at the same time. */
const concurrency = 16
const probeTimeoutMs = 3000
/** Failed probes in a row until a worker diagnoses a gateway. The diagnosis of a hung one takes half a minute. */
const maxFailedProbes = 2
/** How long a gateway must have been healthy until its attempts are reset. */
const healthyMinutes = 10
const batch = 1000
/** Gateways probed in one run. */
const maxProbes = 100
/** Pages read in one run to find them, when many rows belong to other regions or are not to be probed now. */
const maxPages = 10
/** The pause between two comparisons grows with the number of sandboxes, up to one minute. */
const pausePerSandboxMs = 10
const maxPauseMs = 40_000
/** A comparison of many pages is spread over this time. The one at the start is not: the worker waits for it. */
const spreadMs = 20_000

const firstId = firstCursor.id

const isLoggedOutage = (error: unknown) => error instanceof SandboxUnavailableError && error.isLogged

/** The columns that a probe needs. */
const probeColumns = {
  id: instances.id,
  organizationId: instances.organizationId,
  generation: instances.generation,
  endpoint: sql<Endpoint | null>`${instances.endpoint}`,
  hasRelayToken: sql<boolean>`${instances.relayTokenHash} IS NOT NULL`,
}
/** A frozen agent that nobody has used or changed for this long is stopped: it occupies swap. */
const frozenHours = 24

/** The columns that a comparison needs. */
const comparedColumns = {
  id: instances.id,
  organizationId: instances.organizationId,
  desiredState: instances.desiredState,
  generation: instances.generation,
  observedGeneration: instances.observedGeneration,
  readyAt: instances.readyAt,
  stoppedFor: instances.stoppedFor,
  relayTokenHash: instances.relayTokenHash,
  sleepsLong: sql<boolean>`${instances.updatedAt} < now() - make_interval(hours => ${frozenHours})`,
}
type ComparedRow = Pick<Instance, Exclude<keyof typeof comparedColumns, 'sleepsLong'>> & { sleepsLong: boolean }

interface ProbedRow extends Pick<Instance, 'id' | 'organizationId' | 'generation'> {
  endpoint: Endpoint | null
  hasRelayToken: boolean
}

export interface DriftDetection {
  /** Compares, if this is the first worker of the region, and probes the next gateways, at once. */
  detect(signal: AbortSignal): Promise<void>
  /** Probes gateways that did not answer before, and the next ones of this worker's shards. */
  probeNext(signal: AbortSignal): Promise<void>
  tasks(everyMs: number): PeriodicTask[]
}

/**
 * Compares rows with their sandboxes, and raises the generation of rows that differ so that workers repair them. It
 * never changes a sandbox. A platform that cannot be reached is no evidence of drift.
 *
 * The first worker of a region compares all rows with the list of all sandboxes. Each worker probes the gateways of its
 * shards, some in each run. A gateway that ends is compared as soon as the platform reports it.
 */
export function createDriftDetection(deps: LifecycleDeps, rangeOfThis: () => ShardRange): DriftDetection {
  const { db, sandboxes, queue, log } = deps
  /** Failed probes in a row of each gateway that did not answer or ended while a worker held its row. */
  const suspects = new Map<string, number>()
  const reportedOrphans = new Set<string>()
  let leftOverBefore = new Set<string>()
  let sandboxCount = 0
  let cursor = firstCursor

  const isRunningHere = () => and(isRunningAndFree, isIn(deps))
  const findRunning = async (ids: readonly string[]): Promise<ProbedRow[]> =>
    ids.length === 0
      ? []
      : db
          .select(probeColumns)
          .from(instances)
          .where(and(inArray(instances.id, [...ids]), isRunningHere()))

  async function makeDue(
    row: Pick<Instance, 'id' | 'organizationId' | 'generation'>,
    reason: string,
    { silent = false, ...columns }: { silent?: boolean; relayTokenHash?: null } = {},
  ): Promise<void> {
    suspects.delete(row.id)
    const [raised] = await db
      .update(instances)
      .set({
        ...raiseGeneration('drift'),
        ...columns,
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

  /** Queries the platform only about a gateway that does not answer: the comparison finds all other changes. */
  async function probe(row: ProbedRow, signal: AbortSignal): Promise<void> {
    const { endpoint } = row
    if (endpoint && (await probeHealth(endpoint, '/healthz', { timeoutMs: probeTimeoutMs, signal }))) {
      suspects.delete(row.id)
      return
    }
    const difference = await findDifference(row, signal)
    if (difference) return makeDue(row, difference)
    const failures = (suspects.get(row.id) ?? 0) + 1
    suspects.set(row.id, failures)
    // A busy gateway may be made due repeatedly: only the worker's finding becomes an event.
    if (failures >= maxFailedProbes) await makeDue(row, 'the gateway does not answer', { silent: true })
  }

  async function findDifference(row: ProbedRow, signal: AbortSignal): Promise<string | null> {
    const { state, endpoint } = await sandboxes.observe(row.id, signal)
    if (state !== 'running') return 'the sandbox does not run any more'
    if (endpoint && !isDeepStrictEqual(endpoint, row.endpoint)) return 'the gateway has another address'
    return row.hasRelayToken ? null : 'the gateway has no token for the relay'
  }

  async function examine(row: ProbedRow, signal: AbortSignal): Promise<void> {
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

  async function probeNext(signal: AbortSignal): Promise<void> {
    const again = [...suspects.keys()].slice(0, batch)
    const known = await findRunning(again)
    const found = new Set(known.map(({ id }) => id))
    // The other rows were stopped, deleted or claimed meanwhile.
    for (const id of again) if (!found.has(id)) suspects.delete(id)
    const next = (await readNext()).filter(({ id }) => !found.has(id))
    await forEach([...known.slice(0, maxProbes), ...next], (row) => probe(row, signal), signal)
  }

  /**
   * Reads the next rows of this worker's shards. A condition that no index covers is selected as a column and filtered
   * here: as a condition it makes PostgreSQL expect few rows, and read and sort all of the shards in place of a page.
   */
  async function readNext(): Promise<ProbedRow[]> {
    const next: (ProbedRow & Cursor)[] = []
    for (let page = 0; page < maxPages; page += 1) {
      const rows = await db
        .select({ ...probeColumns, shard, isToProbe: sql<boolean>`${isRunningHere()}` })
        .from(instances)
        .where(and(eq(instances.desiredState, 'running'), isInRange(rangeOfThis(), cursor)))
        .orderBy(...inShardOrder)
        .limit(maxProbes)
      next.push(...rows.filter(({ isToProbe }) => isToProbe).slice(0, maxProbes - next.length))
      const isFull = next.length === maxProbes
      const last = isFull ? next.at(-1) : rows.length === maxProbes && rows.at(-1)
      cursor = last || firstCursor
      if (isFull || !last) break
    }
    return next
  }

  /**
   * Compares all rows and all sandboxes of the region without a platform call for each. Reads the list and the rows in
   * pages, and keeps only the ids of the list.
   */
  async function compare(overMs: number, signal: AbortSignal): Promise<void> {
    const pauseMs = sandboxCount > batch ? overMs / (sandboxCount / batch) / 2 : 0
    const ids = collectIds()
    const leftOver: ComparedRow[] = []
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
   * Examines the rows of listed sandboxes that should run and differ. Returns the rows of other sandboxes that may be
   * left over.
   */
  async function compareListed(page: readonly Listed[], signal: AbortSignal): Promise<ComparedRow[]> {
    const listed = page.filter(({ id }) => isId(id))
    const unlike = await findUnlike(listed)
    if (unlike.length === 0) return []
    const running = await findRunning(unlike)
    await forEach(running, (row) => examine(row, signal), signal)
    const isRunning = new Set(running.map(({ id }) => id))
    const ids = unlike.filter((id) => !isRunning.has(id))
    const others = await db.select(comparedColumns).from(instances).where(inArray(instances.id, ids))
    const known = new Set(others.map(({ id }) => id))
    for (const id of ids) if (!known.has(id)) reportOrphan(id)
    const states = new Map(listed.map(({ id, state }) => [id, state]))
    return others.filter((row) => isSettled(row) && isLeftOver(row, states.get(row.id)))
  }

  /**
   * Returns the ids of listed sandboxes that differ from their rows. The database compares them: nearly all are alike,
   * and loading them would cost a worker memory.
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

  async function checkLeftOver(leftOver: readonly ComparedRow[], signal: AbortSignal): Promise<void> {
    const before = leftOverBefore
    leftOverBefore = new Set(leftOver.map(({ id }) => id))
    const check = async (row: ComparedRow) => {
      // The list may be older than the row. A remnant without a sandbox, such as a volume, must be in the next list
      // too.
      const { state } = await sandboxes.observe(row.id, signal)
      const isConfirmed = isLeftOver(row, state) && (state !== 'absent' || before.has(row.id))
      const what = state === 'frozen' ? 'a frozen agent was changed, or has slept for long' : 'a sandbox was left over'
      // Without its token it is not frozen again.
      if (isConfirmed) await makeDue(row, what, { relayTokenHash: null })
    }
    await forEach(leftOver, check, signal)
  }

  const isLeftOver = (row: ComparedRow, state: string | undefined): boolean => {
    const status = publicStatus(row)
    if (status === 'terminated') return true
    const mayBeFrozen = maySleepFrozen(row) && !row.sleepsLong
    return (status === 'stopped' || status === 'error') && (state === 'running' || (state === 'frozen' && !mayBeFrozen))
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

  /** A worker that holds the row may have ended the gateway itself, so the next run probes this one too. */
  async function examineEnded(id: string, signal: AbortSignal): Promise<void> {
    suspects.set(id, suspects.get(id) ?? 0)
    const rows = await findRunning([id]).catch(() => [])
    await forEach(rows, (row) => examine(row, signal), signal)
  }

  async function followEnds(signal: AbortSignal): Promise<void> {
    if (!sandboxes.ends) return
    const ended = pMapIterable(sandboxes.ends(signal), (id) => examineEnded(id, signal), { concurrency })
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
      await unlessLogged(probeNext(signal))
    },
    probeNext,
    tasks: (everyMs) => [
      {
        name: 'compare_sandboxes',
        everyMs: () => Math.max(everyMs, Math.min(sandboxCount * pausePerSandboxMs, maxPauseMs)),
        timeoutMs,
        run: (signal) => compareIfFirst(spreadMs, signal),
      },
      { name: 'probe_gateways', everyMs, timeoutMs, run: (signal) => unlessLogged(probeNext(signal)) },
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
