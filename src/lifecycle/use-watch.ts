import { isDeepStrictEqual } from 'node:util'
import { and, eq, getTableColumns, gt, lt, sql } from 'drizzle-orm'
import type { PgUpdateSetSource } from 'drizzle-orm/pg-core'
import { LRUCache } from 'lru-cache'
import pMap from 'p-map'
import { type Instance, instances, instanceUse, organizations } from '#database/schema.ts'
import type { EventType } from '#history/event-types.ts'
import { changedBy, recordEvent } from '#history/record.ts'
import { type Intent, raiseGeneration } from '#instances/intent.ts'
import { isIn } from '#instances/regions.ts'
import { limitsFor } from '#instances/resources.ts'
import { isSettled, publicStatus } from '#instances/status.ts'
import { hostDiskFloor, hostDiskFree, limitsReached, sandboxRestarts } from '#platform/metrics.ts'
import type { PeriodicTask } from '#platform/periodic.ts'
import { SandboxUnavailableError } from '#sandbox/driver.ts'
import type { ResourceLimits } from '#settings/resources.ts'
import type { LifecycleDeps } from './reconcile.ts'
import { allShards, type Cursor, firstCursor, inShardOrder, isInRange, type ShardRange, shard } from './shards.ts'

const everyMs = 30_000
const timeoutMs = 10 * 60_000
/** Agents that one run looks at: each costs a call of the platform or two. */
const maxLooks = 250
const pageSize = 1000
const concurrency = 8
const megabyte = 1024 * 1024

/** The percents of a limit that are told, each once. A step is left again 5 percent below it. */
const diskSteps = [80, 95, 100]
const loadSteps = [70]
const hysteresis = 5
/** A gateway that uses much is restarted when nobody has used it for so long, and not more often than that. */
const idleMinutes = 10
const recycleHours = 6

/** The percent of its processes from which on an agent has used them up: a fork bomb is now and then some below all. */
const allPids = 95
/** A worker has fewer such agents. After a longer gap between two looks at one, its time begins anew. */
const stuck = { max: 1000, ttl: 10 * 60_000 }

/** Since the last look, of an agent that is to be stopped for the sake of its host. */
const muchGrowth = 64 * megabyte
const guardEveryMs = 2000
const guardTimeoutMs = 10 * 60_000

/** Why an agent was stopped whose files have reached the limit, or that has taken the last room of the host. */
type Cause = 'limit' | 'host'

interface Row extends Omit<Instance, 'sealedConfig' | 'sealedInstructions'> {
  asked: ResourceLimits
  use: typeof instanceUse.$inferSelect | null
}

/** The highest step that `percent` has reached, with the step before it that it has not clearly left. */
export function stepOf(percent: number, before: number, steps: readonly number[]): number {
  const reached = steps.filter((step) => percent >= step || (step <= before && percent >= step - hysteresis))
  return Math.max(0, ...reached)
}

const gigabytes = (bytes: number) => (bytes / 1024 / megabyte).toFixed(1)
const ofDisk = (bytes: number, limitMb: number) => `${gigabytes(bytes)} of ${gigabytes(limitMb * megabyte)} GB of disk`

/**
 * Watches what agents use: tells when that is much, stops an agent whose files have reached their limit, restarts one
 * that uses much memory while nobody uses it, or all of its processes without an answer, and gives sandboxes limits that
 * have changed.
 */
export function createUseWatch(deps: LifecycleDeps, rangeOfThis: () => ShardRange) {
  const { db, sandboxes, queue, log, resources, hostDisk, timeouts } = deps
  /** When starts of agents were first seen with all processes used and no answer, as `performance.now()`. */
  const stuckSince = new LRUCache<string, number>(stuck)
  /** The sizes at the last look, to find who fills the disk of the host. */
  let lastSizes = new Map<string, number>()
  /** Of the agents that were looked at since the last pass began. */
  let sizes = new Map<string, number>()
  let cursor = firstCursor

  async function raise(row: Row, intent: Intent, change: Parameters<typeof changedBy>[0]): Promise<boolean> {
    const { id, generation, observedGeneration } = row
    const isUnchanged = and(
      eq(instances.id, id),
      eq(instances.generation, generation),
      eq(instances.observedGeneration, observedGeneration),
    )
    const [due] = await db
      .update(instances)
      .set({ ...raiseGeneration(intent), changedBy: changedBy(change) })
      .where(and(isUnchanged, eq(instances.desiredState, 'running')))
      .returning()
    if (due) queue.enqueue()
    return due !== undefined
  }

  async function stop(row: Row, cause: Cause, bytes: number): Promise<void> {
    const used = ofDisk(bytes, row.asked.disk_mb)
    const reason =
      cause === 'limit'
        ? `disk: it uses ${used}. Delete files, or raise resources.disk_mb, and start it.`
        : `disk: this host has almost no room left, and the agent, with ${used}, has just taken most of it.`
    if (!(await raise(row, 'stopForDisk', { type: 'instance.stop', reason }))) return
    limitsReached.inc({ resource: 'disk', step: '100' })
    log.warn({ instanceId: row.id, organizationId: row.organizationId, bytes }, `stopped an agent: ${cause} of disk`)
  }

  const note = (row: Row, columns: PgUpdateSetSource<typeof instanceUse>) =>
    db
      .insert(instanceUse)
      .values({ instanceId: row.id, ...(columns as object) })
      .onConflictDoUpdate({ target: instanceUse.instanceId, set: columns })

  /** Notes the step of a resource, and tells it when it is a higher one. */
  async function noteStep(
    row: Row,
    resource: 'disk' | 'memory' | 'pids',
    step: number,
    { type, reason }: { type: EventType; reason: string },
    bytes?: number,
  ): Promise<void> {
    const column = `${resource}Step` as const
    const before = row.use?.[column] ?? 0
    const isKnown = bytes === undefined || Math.abs(bytes - (row.use?.diskBytes ?? 0)) < megabyte
    if (step === before && isKnown) return
    const columns = { [column]: step, ...(bytes !== undefined && { diskBytes: bytes }) }
    if (step <= before) return void (await note(row, columns))
    await db.transaction(async (tx) => {
      // Two looks at the same time tell it once.
      const isHigher = lt(instanceUse[column], step)
      const [noted] = await tx
        .insert(instanceUse)
        .values({ instanceId: row.id, ...columns })
        .onConflictDoUpdate({ target: instanceUse.instanceId, set: columns, setWhere: isHigher })
        .returning()
      if (!noted) return
      await recordEvent(tx, { organizationId: row.organizationId, instanceId: row.id, type, reason })
      if (step < 100) limitsReached.inc({ resource, step: String(step) })
    })
  }

  async function lookAtDisk(row: Row, bytes: number): Promise<void> {
    const percent = (bytes / (row.asked.disk_mb * megabyte)) * 100
    const step = stepOf(percent, row.use?.diskStep ?? 0, diskSteps)
    const reason = `${ofDisk(bytes, row.asked.disk_mb)}. At 95 % the API writes no files, at 100 % the agent is stopped.`
    await noteStep(row, 'disk', step, { type: 'instance.disk_high', reason }, bytes)
    if (percent >= 100) await stop(row, 'limit', bytes)
  }

  async function lookAtLoad(row: Row, signal: AbortSignal): Promise<void> {
    if (publicStatus(row) !== 'running') return
    const use = await sandboxes.currentUse(row.id, signal)
    const looks = [
      {
        resource: 'memory',
        used: use.memoryBytes,
        limit: (row.limits?.kept.memory_mb ?? row.asked.memory_mb) * megabyte,
        isKept: row.limits?.kept.memory_mb != null,
        type: 'instance.memory_high',
        words: (used: number, limit: number) => `${gigabytes(used)} of ${gigabytes(limit)} GB of memory`,
      },
      {
        resource: 'pids',
        used: use.pids,
        limit: row.limits?.kept.pids ?? row.asked.pids,
        isKept: row.limits?.kept.pids != null,
        type: 'instance.pids_high',
        words: (used: number, limit: number) => `${used} of ${limit} processes and threads`,
      },
    ] as const
    for (const { resource, used, limit, isKept, type, words } of looks) {
      if (used === null) continue
      const percent = (used / limit) * 100
      const step = stepOf(percent, row.use?.[`${resource}Step`] ?? 0, loadSteps)
      await noteStep(row, resource, step, { type, reason: `It uses ${words(used, limit)}.` })
      // Also while a worker is at an agent that does not answer: nothing else keeps it from the memory of its host.
      if (percent > 100 && !isKept) return restart(row, resource, `it used ${words(used, limit)}`)
      if (resource === 'pids' && isStuck(row, percent)) {
        const minutes = timeouts.busyMs / 60_000
        return restart(row, resource, `it used ${words(used, limit)}, and did not answer for ${minutes} minutes`)
      }
      if (step > 0 && isSettled(row) && (await isIdle(row)))
        return restart(row, 'recycled', `it used ${words(used, limit)}, and nobody used it`)
    }
  }

  /** Whether an agent has used all of its processes, and not answered, at each look for the longest time. */
  function isStuck(row: Row, percentOfPids: number): boolean {
    const start = `${row.id} ${row.readyAt?.getTime()}`
    if (isSettled(row) || percentOfPids < allPids) {
      stuckSince.delete(start)
      return false
    }
    const now = performance.now()
    const since = stuckSince.get(start) ?? now
    stuckSince.set(start, since)
    return now - since >= timeouts.busyMs
  }

  async function restart(row: Row, why: 'memory' | 'pids' | 'recycled', words: string): Promise<void> {
    const reason = `${why === 'memory' ? 'oom' : why}: ${words}.`
    if (!(await raise(row, 'restart', { type: 'instance.restart', reason }))) return
    await note(row, { recycledAt: sql`now()`, memoryStep: 0, pidsStep: 0 })
    sandboxRestarts.inc({ reason: why === 'memory' ? 'oom' : why })
    log.warn({ instanceId: row.id, organizationId: row.organizationId }, `restarted an agent: ${reason}`)
  }

  /** Whether a restart disturbs nobody, and does not follow another one. */
  async function isIdle({ id }: Row): Promise<boolean> {
    const { rows } = await db.execute<{ idle: boolean }>(sql`
      SELECT NOT EXISTS (SELECT FROM model_calls WHERE instance_id = ${id}
                         AND began_at > now() - make_interval(mins => ${idleMinutes}))
         AND NOT EXISTS (SELECT FROM open_model_calls WHERE instance_id = ${id})
         AND NOT EXISTS (SELECT FROM turn_lines WHERE instance_id = ${id} AND turns <> '{}')
         AND NOT EXISTS (SELECT FROM responses WHERE instance_id = ${id}
                         AND created_at > now() - make_interval(mins => ${idleMinutes}))
         AND NOT EXISTS (SELECT FROM instance_use WHERE instance_id = ${id}
                         AND recycled_at > now() - make_interval(hours => ${recycleHours}))
         AND EXISTS (SELECT FROM instances WHERE id = ${id}
                     AND ready_at < now() - make_interval(mins => ${idleMinutes})) AS idle`)
    return rows[0]?.idle === true
  }

  /**
   * Agents of a range of shards after a cursor, and that of the next page; null after the last. Those of the first
   * worker end with the stopped ones that have many files: these may be deleted.
   */
  async function readPage(
    range: ShardRange,
    after: Cursor,
    limit: number,
  ): Promise<{ rows: Row[]; next: Cursor | null }> {
    const { sealedConfig: _, sealedInstructions: __, ...columns } = getTableColumns(instances)
    const { resources: ofOrganization, maxResources } = organizations
    const select = () =>
      db
        .select({
          row: { ...columns, shard },
          organization: { resources: ofOrganization, maxResources },
          use: instanceUse,
        })
        .from(instances)
        .innerJoin(organizations, eq(organizations.id, instances.organizationId))
        .leftJoin(instanceUse, eq(instanceUse.instanceId, instances.id))
    const running = await select()
      .where(and(eq(instances.desiredState, 'running'), isIn(deps), isInRange(range, after)))
      .orderBy(...inShardOrder)
      .limit(limit)
    const next = (running.length === limit && running.at(-1)?.row) || null
    const isFullAndStopped = and(gt(instanceUse.diskStep, 0), eq(instances.desiredState, 'stopped'), isIn(deps))
    const stopped = next === null && range.index === 0 ? await select().where(isFullAndStopped).limit(pageSize) : []
    const rows = [...running, ...stopped].map(({ row, organization, use }) => ({
      ...row,
      use,
      asked: limitsFor(row.resources, organization, resources),
    }))
    return { rows, next }
  }

  async function look(row: Row, bytes: number | undefined, signal: AbortSignal): Promise<void> {
    const isAtRest = publicStatus(row) === 'running' && isSettled(row)
    if (isAtRest && !isDeepStrictEqual(row.limits?.asked, row.asked))
      await raise(row, 'changeResources', { silent: true })
    if (bytes !== undefined) await lookAtDisk(row, bytes)
    await lookAtLoad(row, signal)
  }

  interface Seen {
    row: Row
    bytes: number
  }

  async function lookAtEach(rows: readonly Row[], signal: AbortSignal): Promise<Seen[]> {
    const ids = rows.map(({ id }) => id)
    const found = ids.length > 0 ? await sandboxes.diskUse(ids, signal) : new Map<string, number>()
    await pMap(
      rows,
      (row) =>
        look(row, found.get(row.id), signal).catch((err: unknown) => {
          signal.throwIfAborted()
          if (err instanceof SandboxUnavailableError && err.isLogged) return
          log.warn({ err, instanceId: row.id }, 'could not look at what an agent uses')
        }),
      { concurrency, signal },
    )
    return rows.flatMap((row) => {
      const bytes = found.get(row.id)
      return bytes === undefined ? [] : [{ row, bytes }]
    })
  }

  /** Looks at every agent, also at those of other workers. */
  async function lookAtAll(signal: AbortSignal): Promise<Seen[]> {
    const seen: Seen[] = []
    for (let after: Cursor | null = firstCursor; after; ) {
      const { rows, next } = await readPage(allShards, after, pageSize)
      seen.push(...(await lookAtEach(rows, signal)))
      after = next
    }
    return seen
  }

  const sizesOf = (seen: readonly Seen[]) => new Map(seen.map(({ row, bytes }) => [row.id, bytes]))

  return {
    /** Looks at the next agents of this worker's shards, all of them where they are few. */
    async watch(signal: AbortSignal): Promise<void> {
      const { rows, next } = await readPage(rangeOfThis(), cursor, maxLooks)
      cursor = next ?? firstCursor
      sizes = new Map([...sizes, ...sizesOf(await lookAtEach(rows, signal))])
      if (next) return
      lastSizes = sizes
      sizes = new Map()
    },
    /**
     * Keeps room for the control plane on the disk of this host. While that has less than the floor, looks at all
     * agents and stops the one that has grown most since the last look, if that is much, or little room is left: one at
     * a time.
     */
    async guardHost(signal: AbortSignal): Promise<void> {
      const { isLow, freeBytes, floorBytes } = await hostDisk.look()
      hostDiskFree.set(freeBytes)
      hostDiskFloor.set(floorBytes)
      if (!isLow) return
      const before = lastSizes
      const seen = await lookAtAll(signal)
      lastSizes = sizesOf(seen)
      const running = seen.filter(({ row }) => row.desiredState === 'running')
      if (running.some(({ row, bytes }) => bytes >= row.asked.disk_mb * megabyte)) return // they have been stopped
      const growth = ({ row, bytes }: (typeof seen)[number]) => bytes - (before.get(row.id) ?? bytes)
      const [most] = running.sort((a, b) => growth(b) - growth(a))
      const least = freeBytes < floorBytes / 2 ? 1 : muchGrowth
      if (most && growth(most) >= least) await stop(most.row, 'host', most.bytes)
    },
  }
}

/** The periodic look at what agents use, and at the disk of this host. */
export function useTasks(deps: LifecycleDeps, rangeOfThis: () => ShardRange): PeriodicTask[] {
  const { watch, guardHost } = createUseWatch(deps, rangeOfThis)
  const unlessLogged = (error: unknown) => {
    if (!(error instanceof SandboxUnavailableError && error.isLogged)) throw error
  }
  return [
    {
      name: 'the watch of what agents use',
      everyMs,
      timeoutMs,
      run: (signal) => watch(signal).catch(unlessLogged),
    },
    {
      name: 'the watch of the disk of this host',
      everyMs: guardEveryMs,
      timeoutMs: guardTimeoutMs,
      run: (signal) => guardHost(signal).catch(unlessLogged),
    },
  ]
}
