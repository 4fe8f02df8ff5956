import { and, lt, type SQL, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { reportRegions } from '#database/processes.ts'
import { instances, shardOf } from '#database/schema.ts'
import type { Region } from '#instances/regions.ts'
import type { PeriodicTask } from '#platform/periodic.ts'
import { findWaiting } from './sweep.ts'

/** With the time after which a silent worker counts as ended, others look at its instances within 10 s. */
const reportEveryMs = 2000
const reportTimeoutMs = 5000
/** More workers of a region than these have nothing to look at. */
const shardCount = 256

/** The shards of one worker: which it is among the workers of a region. */
export interface ShardRange {
  index: number
  /** Of workers. */
  count: number
}

/** Of a worker that knows of no other. */
export const allShards: ShardRange = { index: 0, count: 1 }

/** Where a page of instances ended. */
export interface Cursor {
  shard: number
  id: string
}

export const firstCursor: Cursor = { shard: -1, id: '00000000-0000-0000-0000-000000000000' }

/** The shard of an instance, a column of the rows where a page may end. */
export const shard = shardOf(instances.id)

/**
 * The instances of a range of shards after a cursor. With `inShardOrder`, those that should run come from an index. The
 * lower end is one condition: of two, PostgreSQL expects so few rows that it reads and sorts all of the range.
 */
export function isInRange({ index, count }: ShardRange, cursor: Cursor): SQL | undefined {
  const first = Math.floor((shardCount * index) / count)
  const after = cursor.shard < first ? { ...firstCursor, shard: first } : cursor
  return and(
    sql`(${shard}, ${instances.id}) > (${after.shard}, ${after.id})`,
    lt(shard, Math.floor((shardCount * (index + 1)) / count)),
  )
}
export const inShardOrder = [shard, instances.id]

export interface Shards {
  /** Reports the regions of this worker, and learns of the others. */
  readonly task: PeriodicTask
  of(region: Pick<Region, 'region' | 'sandboxes'>): ShardRange
  /** Whether this worker is the first of all, whatever regions they serve. */
  isFirst(): boolean
  /** Whether rows wait that only other workers serve. */
  areWaitingElsewhere(): Promise<boolean>
  /** Leaves the rows to the others at once. */
  leave(): Promise<unknown>
}

const placeName = (driver: string, region: string) => `${driver}/${region}`
const nameOf = ({ region, sandboxes }: Pick<Region, 'region' | 'sandboxes'>) => placeName(sandboxes.name, region)

/**
 * Spreads the instances of each region over the workers that serve it, by the order of the ids of their processes. While
 * workers come and go, two may look at the same row, or none for some seconds: looks change nothing by themselves, and
 * the next ones make up for it.
 */
export function createShards(db: Db, processId: string, regions: () => readonly Region[]): Shards {
  let ranges = new Map<string, ShardRange>()
  let isFirst = true
  let elsewhere = new Set<string>()
  return {
    task: {
      name: 'the report of the regions of a worker',
      everyMs: reportEveryMs,
      timeoutMs: reportTimeoutMs,
      async run() {
        const served = regions().map(nameOf)
        const others = await reportRegions(db, processId, served)
        isFirst = others.every(({ id }) => id > processId)
        elsewhere = new Set(others.flatMap((other) => other.regions).filter((name) => !served.includes(name)))
        ranges = new Map(
          served.map((name) => {
            const workers = others.filter((other) => other.regions.includes(name)).map(({ id }) => id)
            return [name, { index: workers.filter((id) => id < processId).length, count: workers.length + 1 }]
          }),
        )
      },
    },
    of: (region) => ranges.get(nameOf(region)) ?? allShards,
    isFirst: () => isFirst,
    areWaitingElsewhere: async () =>
      elsewhere.size > 0 &&
      (await findWaiting(db)).some(({ driver, region }) => elsewhere.has(placeName(driver, region))),
    leave: () => reportRegions(db, processId, []),
  }
}
