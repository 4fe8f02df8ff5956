import { isDeepStrictEqual } from 'node:util'
import { and, eq, getTableColumns, type SQL, sql } from 'drizzle-orm'
import pMap from 'p-map'
import { type Instance, instances, instanceUse, organizations } from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { type Intent, raiseGeneration } from '#instances/intent.ts'
import { isIn } from '#instances/regions.ts'
import { limitsFor } from '#instances/resources.ts'
import { isSettled, publicStatus } from '#instances/status.ts'
import type { LifecycleDeps } from '#lifecycle/attempt/reconcile.ts'
import {
  allShards,
  type Cursor,
  firstCursor,
  inShardOrder,
  isInRange,
  type ShardRange,
  shard,
} from '#lifecycle/queue/shards.ts'
import { diskStops, hostDiskFloor, hostDiskFree, sandboxRestarts } from '#platform/metrics.ts'
import type { PeriodicTask } from '#platform/periodic.ts'
import { SandboxUnavailableError } from '#sandbox/driver.ts'
import type { ResourceLimits } from '#settings/resources.ts'
import { askWhetherIdle, wakeTimes } from './sleep.ts'

const everyMs = 30_000
const timeoutMs = 10 * 60_000
/** Agents measured in one run: each costs one or two platform calls. */
const maxMeasured = 250
const pageSize = 1000
const concurrency = 8
const megabyte = 1024 * 1024

/**
 * Memory share above which an idle gateway is restarted, and the idle time, which is also the least time between two
 * restarts.
 */
const muchMemory = 0.7
const idleSeconds = 10 * 60
const restartSeconds = 6 * 60 * 60

/** Growth, since the disk of its host became low, from which on an agent may be stopped to protect the host. */
const muchGrowth = 64 * megabyte
const guardEveryMs = 2000
const guardTimeoutMs = 10 * 60_000

/** The reason of a stop: the agent's disk limit, or the floor of its host. */
type Cause = 'limit' | 'host'

interface Row extends Omit<Instance, 'sealedConfig' | 'sealedInstructions'> {
  asked: ResourceLimits
  use: typeof instanceUse.$inferSelect | null
}

/** Whether an agent was not used for some seconds, nor started within others, and has no turn, in SQL. */
function idleFor(idle: number, awake: number): SQL {
  const id = instances.id
  const since = sql`now() - make_interval(secs => ${idle})`
  return sql`NOT EXISTS (SELECT FROM model_calls WHERE instance_id = ${id} AND began_at > ${since})
    AND NOT EXISTS (SELECT FROM open_model_calls WHERE instance_id = ${id})
    AND NOT EXISTS (SELECT FROM turn_lines WHERE instance_id = ${id} AND turns <> '{}')
    AND NOT EXISTS (SELECT FROM responses WHERE instance_id = ${id} AND created_at > ${since})
    AND NOT EXISTS (SELECT FROM responses WHERE instance_id = ${id} AND sealed_request IS NOT NULL)
    AND ${instances.readyAt} < now() - make_interval(secs => ${awake})`
}

const gigabytes = (bytes: number) => (bytes / 1024 / megabyte).toFixed(1)
const ofDisk = (bytes: number, limitMb: number) => `${gigabytes(bytes)} of ${gigabytes(limitMb * megabyte)} GB of disk`

/**
 * Measures the use of agents: stops an agent that has reached its disk limit, restarts an idle one that uses much
 * memory, puts idle ones to sleep, and gives sandboxes changed limits.
 */
export function createUseWatch(deps: LifecycleDeps, rangeOfThis: () => ShardRange) {
  const { db, sandboxes, queue, log, resources, hostDisk } = deps
  /** The sizes before the disk of the host became low, to find the agent that fills it. */
  let lastSizes = new Map<string, number>()
  /** The sizes measured since the last pass began. */
  let sizes = new Map<string, number>()
  let cursor = firstCursor

  async function raise(
    row: Row,
    intent: Intent,
    change: Parameters<typeof changedBy>[0],
    { where, ...columns }: { where?: SQL | undefined; wakesAt?: SQL | null } = {},
  ): Promise<boolean> {
    const { id, generation, observedGeneration } = row
    const isUnchanged = and(
      eq(instances.id, id),
      eq(instances.generation, generation),
      eq(instances.observedGeneration, observedGeneration),
    )
    const [due] = await db
      .update(instances)
      .set({ ...raiseGeneration(intent), ...columns, changedBy: changedBy(change) })
      .where(and(isUnchanged, eq(instances.desiredState, 'running'), where))
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
    diskStops.inc()
    log.warn({ instanceId: row.id, organizationId: row.organizationId, bytes }, `stopped an agent: ${cause} of disk`)
  }

  async function checkDisk(row: Row, bytes: number): Promise<void> {
    const isFull = bytes >= row.asked.disk_mb * megabyte
    const isKnown = isFull === (row.use?.isFull ?? false) && Math.abs(bytes - (row.use?.diskBytes ?? 0)) < megabyte
    if (!isKnown)
      await db
        .insert(instanceUse)
        .values({ instanceId: row.id, diskBytes: bytes, isFull })
        .onConflictDoUpdate({ target: instanceUse.instanceId, set: { diskBytes: bytes, isFull } })
    if (isFull) await stop(row, 'limit', bytes)
  }

  async function checkMemory(row: Row, signal: AbortSignal): Promise<void> {
    const used = await sandboxes.memoryUse(row.id, signal)
    const limit = (row.limits?.kept.memory_mb ?? row.asked.memory_mb) * megabyte
    if (used === null || used < limit * muchMemory) return
    if (!(await isIdle(row, idleFor(idleSeconds, restartSeconds)))) return
    const reason = `recycled: it used ${gigabytes(used)} of ${gigabytes(limit)} GB of memory, and was idle.`
    if (!(await raise(row, 'restart', { type: 'instance.restart', reason }))) return
    sandboxRestarts.inc({ reason: 'recycled' })
    log.warn({ instanceId: row.id, organizationId: row.organizationId }, `restarted an agent: ${reason}`)
  }

  const isIdle = async ({ id }: Row, idle: SQL): Promise<boolean> =>
    (await db.$count(instances, and(eq(instances.id, id), idle))) === 1

  /** Puts an agent to sleep that nobody has used for its timeout, and that has nothing to do. */
  async function checkSleep(row: Row, signal: AbortSignal): Promise<void> {
    const seconds = row.idleTimeoutSeconds
    if (seconds === null || !(await isIdle(row, idleFor(seconds, seconds)))) return
    const asked = await askWhetherIdle(deps, row, signal).catch((err: unknown) => {
      signal.throwIfAborted()
      log.debug({ err, instanceId: row.id }, 'a gateway does not say whether it is idle')
      return 'busy' as const
    })
    if (asked === 'busy') return
    const { wakesAt, isFar } = wakeTimes(asked.nextRunMs, seconds)
    // The statement decides again: a turn may have begun meanwhile, or the timeout been changed.
    const where = and(eq(instances.idleTimeoutSeconds, seconds), idleFor(seconds, seconds), isFar)
    const change = { type: 'instance.stop', reason: `asleep: idle for ${seconds} s.` } as const
    if (await raise(row, 'sleep', change, { where, wakesAt }))
      log.info({ instanceId: row.id, organizationId: row.organizationId }, 'an idle agent goes to sleep')
  }

  /**
   * Agents of a range of shards after a cursor, and the cursor of the next page; null after the last. The first
   * worker's pages end with the full agents that are stopped: their files may have been deleted.
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
    const isFullAndStopped = and(eq(instanceUse.isFull, true), eq(instances.desiredState, 'stopped'), isIn(deps))
    const stopped = next === null && range.index === 0 ? await select().where(isFullAndStopped).limit(pageSize) : []
    const rows = [...running, ...stopped].map(({ row, organization, use }) => ({
      ...row,
      use,
      asked: limitsFor(row.resources, organization, resources),
    }))
    return { rows, next }
  }

  async function check(
    row: Row,
    bytes: number | undefined,
    signal: AbortSignal,
    { maySleep }: { maySleep: boolean },
  ): Promise<void> {
    const isAtRest = publicStatus(row) === 'running' && isSettled(row)
    if (isAtRest && !isDeepStrictEqual(row.limits?.asked, row.asked)) await raise(row, 'changeAgent', { silent: true })
    if (bytes !== undefined) await checkDisk(row, bytes)
    if (!isAtRest) return
    await checkMemory(row, signal)
    if (maySleep) await checkSleep(row, signal)
  }

  interface Seen {
    row: Row
    bytes: number
  }

  async function measureEach(
    rows: readonly Row[],
    signal: AbortSignal,
    options = { maySleep: false },
  ): Promise<Seen[]> {
    const ids = rows.map(({ id }) => id)
    const found = ids.length > 0 ? await sandboxes.diskUse(ids, signal) : new Map<string, number>()
    await pMap(
      rows,
      (row) =>
        check(row, found.get(row.id), signal, options).catch((err: unknown) => {
          signal.throwIfAborted()
          if (err instanceof SandboxUnavailableError && err.isLogged) return
          log.warn({ err, instanceId: row.id }, 'could not measure an agent')
        }),
      { concurrency, signal },
    )
    return rows.flatMap((row) => {
      const bytes = found.get(row.id)
      return bytes === undefined ? [] : [{ row, bytes }]
    })
  }

  /** Measures every agent, including those of other workers. */
  async function measureAll(signal: AbortSignal): Promise<Seen[]> {
    const seen: Seen[] = []
    for (let after: Cursor | null = firstCursor; after; ) {
      const { rows, next } = await readPage(allShards, after, pageSize)
      seen.push(...(await measureEach(rows, signal)))
      after = next
    }
    return seen
  }

  const sizesOf = (seen: readonly Seen[]) => new Map(seen.map(({ row, bytes }) => [row.id, bytes]))

  return {
    /** Measures the next agents of this worker's shards, or all of them if they are few. */
    async watch(signal: AbortSignal): Promise<void> {
      const { rows, next } = await readPage(rangeOfThis(), cursor, maxMeasured)
      cursor = next ?? firstCursor
      sizes = new Map([...sizes, ...sizesOf(await measureEach(rows, signal, { maySleep: true }))])
      if (next) return
      if (!(await hostDisk.read()).isLow) lastSizes = sizes
      sizes = new Map()
    },
    /**
     * Keeps room for the control plane on the disk of this host. While free space is below the floor, it measures all
     * agents and stops the one that has grown most since then, if it grew much: one at a time.
     */
    async guardHost(signal: AbortSignal): Promise<void> {
      const { isLow, freeBytes, floorBytes } = await hostDisk.read()
      hostDiskFree.set(freeBytes)
      hostDiskFloor.set(floorBytes)
      if (!isLow) return
      const seen = await measureAll(signal)
      lastSizes = new Map([...sizesOf(seen), ...lastSizes])
      const running = seen.filter(({ row }) => row.desiredState === 'running')
      if (running.some(({ row, bytes }) => bytes >= row.asked.disk_mb * megabyte)) return // they have been stopped
      const growth = ({ row, bytes }: (typeof seen)[number]) => bytes - (lastSizes.get(row.id) ?? bytes)
      const [most] = running.sort((a, b) => growth(b) - growth(a))
      if (most && growth(most) >= muchGrowth) await stop(most.row, 'host', most.bytes)
    },
  }
}

/** The periodic tasks that measure agents and guard the disk of this host. */
export function useTasks(deps: LifecycleDeps, rangeOfThis: () => ShardRange): PeriodicTask[] {
  const { watch, guardHost } = createUseWatch(deps, rangeOfThis)
  const unlessLogged = (error: unknown) => {
    if (!(error instanceof SandboxUnavailableError && error.isLogged)) throw error
  }
  return [
    {
      name: 'check_agent_usage',
      everyMs,
      timeoutMs,
      run: (signal) => watch(signal).catch(unlessLogged),
    },
    {
      name: 'guard_host_disk',
      everyMs: guardEveryMs,
      timeoutMs: guardTimeoutMs,
      run: (signal) => guardHost(signal).catch(unlessLogged),
    },
  ]
}
