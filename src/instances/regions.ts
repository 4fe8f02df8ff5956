import { and, eq, isNull, or, type SQL, sql } from 'drizzle-orm'
import { type Instance, instances } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import type { BaseUrls } from '#openclaw/config/config.ts'
import { type SandboxDriver, SandboxUnavailableError } from '#sandbox/driver.ts'
import type { ResourceSettings } from '#settings/resources.ts'
import type { WarmPoolSize } from '#settings/warm-pool.ts'

/** The address of the relay for gateways. */
export interface RelayAddress {
  /** Undefined when the relay is on the host of the sandboxes. */
  url: string | undefined
  /** The relay's port. */
  port: number
}

/** A platform for instances, and the settings of the agents there. */
export interface Region {
  /** The name in the API and in rows. */
  readonly region: string
  /** Whether rows without a region belong to this one. */
  readonly hasUnnamed: boolean
  readonly sandboxes: SandboxDriver
  readonly relay: RelayAddress
  /** The resource limits of its agents. */
  readonly resources: ResourceSettings
  /** The base URLs of the model providers for its agents. */
  readonly baseUrls: BaseUrls
  /** How many warm instances it has, see `warm-pool.ts`. */
  readonly warmPool: WarmPoolSize
}

/** A region without its open driver, for the commands of the operator. */
export interface RegionPlace extends Pick<Region, 'region' | 'hasUnnamed'> {
  readonly sandboxDriver: string
}

/** The columns that locate an instance. */
export type Placed = Pick<Instance, 'region' | 'sandboxDriver'>

/** The regions of this installation: one or more. */
export interface Regions<R extends Region = Region> {
  all(): readonly R[]
  default(): R
  /** The region of a row. Throws SandboxUnavailableError for an unknown region, or one with another driver. */
  of(row: Placed): R
  /** The region with this name. Throws `invalid_value`. */
  named(name: string): R
  /** The region to store in a new row, given the name that its caller sent. */
  toStore(name: string | null): string | null
  /** The region of a row as shown to callers. */
  shown(row: Pick<Instance, 'region'>): string | null
}

interface RegionSet<R extends Region> {
  regions: readonly R[]
  default: string
  /**
   * Whether the operator has named the regions. Otherwise there is one, and instances have no region unless their
   * creator names it.
   */
  areNamed: boolean
}

/** Whether a row is in a region, by name only; null stands for a row without one. */
export const isNamed = ({ region, hasUnnamed }: Pick<Region, 'region' | 'hasUnnamed'>, name: string | null): boolean =>
  name === null ? hasUnnamed : name === region

/** Whether a row is in a region and has its current driver. */
const holds = (region: Region, row: Placed): boolean =>
  row.sandboxDriver === region.sandboxes.name && isNamed(region, row.region)

/** The region of a row among `regions`; undefined if it is in none of them. */
export const regionOf = <R extends Region>(regions: readonly R[], row: Placed): R | undefined =>
  regions.find((region) => holds(region, row))

/** The rows that the API shows in a region, whatever their driver. */
export const isShownIn = ({ region, hasUnnamed }: Pick<Region, 'region' | 'hasUnnamed'>): SQL | undefined =>
  hasUnnamed ? or(eq(instances.region, region), isNull(instances.region)) : eq(instances.region, region)

/** The rows of a region that have its current driver. */
export const isIn = (region: Region): SQL | undefined =>
  and(eq(instances.sandboxDriver, region.sandboxes.name), isShownIn(region))

/** The rows of any of these regions. */
export const isInAny = (regions: readonly Region[]): SQL => or(...regions.map(isIn)) ?? sql`false`

/** Throws an Error if the default region is missing. */
export function createRegions<R extends Region>({ regions, default: defaultName, areNamed }: RegionSet<R>): Regions<R> {
  const find = (name: string) => regions.find(({ region }) => region === name)
  const byDefault = find(defaultName)
  if (!byDefault) throw new Error(`there is no region ${defaultName}`)
  return {
    all: () => regions,
    default: () => byDefault,
    of(row) {
      const found = regionOf(regions, row)
      if (found) return found
      const name = row.region === null ? 'without a name' : row.region
      throw new SandboxUnavailableError(new Error(`this process has no region ${name} with ${row.sandboxDriver}`))
    },
    named(name) {
      const found = find(name)
      const known = regions.map(({ region }) => region)
      if (!found) throw new AppError('invalid_value', texts.unknownRegion(name, known), { param: 'region' })
      return found
    },
    toStore: (name) => name ?? (areNamed ? byDefault.region : null),
    shown({ region }) {
      if (region !== null || !areNamed) return region
      return regions.find(({ hasUnnamed }) => hasUnnamed)?.region ?? null
    },
  }
}

/** The only region when the operator has named none: it has the name of its driver. */
export const onlyRegion = <Settings extends Omit<Region, 'region' | 'hasUnnamed'>>(
  settings: Settings,
): Regions<Settings & Region> =>
  createRegions({
    regions: [{ ...settings, region: settings.sandboxes.name, hasUnnamed: true }],
    default: settings.sandboxes.name,
    areNamed: false,
  })
