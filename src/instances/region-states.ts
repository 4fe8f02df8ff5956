import { like } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { readValue, storeValue } from '#database/installation.ts'
import { installation } from '#database/schema.ts'

/**
 * `cordoned`: the region takes no new instances. `drained`: it also starts none, and the running ones are stopped. The
 * operator sets the state, and every process reads it from the database.
 */
const regionStates = ['open', 'cordoned', 'drained'] as const
export type RegionState = (typeof regionStates)[number]

const prefix = 'region-state/'
/** The name of a region's state in the table `installation`. */
export const stateName = (region: string): string => `${prefix}${region}`

const toState = (value: string | undefined): RegionState => regionStates.find((state) => state === value) ?? 'open'

export const readRegionState = async (db: Db, region: string): Promise<RegionState> =>
  toState(await readValue(db, stateName(region)))

/** The states of all regions that were ever closed; the others are open. */
export async function readRegionStates(db: Db): Promise<Map<string, RegionState>> {
  const rows = await db
    .select()
    .from(installation)
    .where(like(installation.name, `${prefix}%`))
  return new Map(rows.map(({ name, value }) => [name.slice(prefix.length), toState(value)]))
}

export const setRegionState = (db: Db, region: string, state: RegionState): Promise<void> =>
  storeValue(db, stateName(region), state)
