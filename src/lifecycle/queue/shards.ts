import { and, lt, type SQL, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { isWorker, type ProcessFacts } from '#database/processes.ts'
import { instances, shardOf } from '#database/schema.ts'
import type { Region } from '#instances/regions.ts'
import { findWaiting } from './sweep.ts'

/** Upper bound of useful workers in a region: more of them get no shards. */
const shardCount = 256

/** The shards of one worker: its index among the workers of a region. */
export interface ShardRange {
  index: number
  /** The number of workers. */
  count: number
}

/** The range of a worker without others. */
export const allShards: ShardRange = { index: 0, count: 1 }

/** The end of a page of instances. */
export interface Cursor {
  shard: number
  id: string
}

export const firstCursor: Cursor = { shard: -1, id: '00000000-0000-0000-0000-000000000000' }

/** The shard of an instance, selected in pages that end with a cursor. */
export const shard = shardOf(instances.id)

/**
 * The instances of a range of shards after a cursor. With `inShardOrder`, an index delivers those that should run. The
 * lower end is one condition: with two, PostgreSQL expects so few rows that it reads and sorts the whole range.
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
  /** Whether this worker is the first of all, in any region. */
  isFirst(): boolean
  /** Whether rows wait that only other workers serve. */
  areWaitingElsewhere(): Promise<boolean>
}

const placeName = (driver: string, region: string) => `${driver}/${region}`

/** The name of a region in the beat of a process. */
export const nameOf = ({ region, sandboxes }: Pick<Region, 'region' | 'sandboxes'>) => placeName(sandboxes.name, region)

/**
 * Divides the instances of each region among its workers, in the order of their process ids. `alive` are the processes
 * of the last beat. While workers come and go, a row may be probed twice or not at all for some seconds. That is
 * harmless: probes change nothing, and later ones catch up.
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
