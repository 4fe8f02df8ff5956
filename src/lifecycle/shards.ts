import { and, lt, type SQL, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { isWorker, type ProcessFacts } from '#database/processes.ts'
import { instances, shardOf } from '#database/schema.ts'
import type { Region } from '#instances/regions.ts'
import { findWaiting } from './sweep.ts'

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
  of(region: Pick<Region, 'region' | 'sandboxes'>): ShardRange
  /** Whether this worker is the first of all, whatever regions they serve. */
  isFirst(): boolean
  /** Whether rows wait that only other workers serve. */
  areWaitingElsewhere(): Promise<boolean>
}

const placeName = (driver: string, region: string) => `${driver}/${region}`

/** The name of a region among those of a process. */
export const nameOf = ({ region, sandboxes }: Pick<Region, 'region' | 'sandboxes'>) => placeName(sandboxes.name, region)

/**
 * Divides the instances of each region among the workers that serve it, in the order of the ids of their processes.
 * `alive` are the processes of the last beat. While workers come and go, two may look at the same row, or none for some
 * seconds: looks change nothing by themselves, and the next ones make up for it.
 */
export function createShards(
  db: Db,
  processId: string,
  alive: () => readonly Pick<ProcessFacts, 'id' | 'regions'>[],
  regions: () => readonly Region[],
): Shards {
  const others = () => alive().filter((process) => isWorker(process) && process.id !== processId)
  return {
    of(region) {
      const workers = others().filter((other) => other.regions.includes(nameOf(region)))
      return { index: workers.filter(({ id }) => id < processId).length, count: workers.length + 1 }
    },
    isFirst: () => others().every(({ id }) => id > processId),
    async areWaitingElsewhere() {
      const served = regions().map(nameOf)
      const elsewhere = new Set(others().flatMap((other) => other.regions))
      for (const name of served) elsewhere.delete(name)
      if (elsewhere.size === 0) return false
      return (await findWaiting(db)).some(({ driver, region }) => elsewhere.has(placeName(driver, region)))
    },
  }
}
