import { resolve } from 'node:path'
import type { Db } from '#database/client.ts'
import { storeOnce } from '#database/installation.ts'
import type { HostRule } from '#egress/hosts.ts'
import { StartupError } from '#errors/startup-error.ts'
import { createRegions, onlyRegion, type Region, type RegionPlace, type Regions } from '#instances/regions.ts'
import { prepareDataFolder } from '#platform/data-folder.ts'
import { createHostDisk, type HostDisk, usualFloorMb } from '#platform/host-disk.ts'
import type { Logger } from '#platform/log.ts'
import type { Config } from '#settings/config.ts'
import { entriesOf } from '#settings/exposure.ts'
import { type RegionSettings, readRegionsFile } from '#settings/regions-file.ts'
import { operatorHosts } from './operator-hosts.ts'
import type { AnyDriver, CreateDriver } from './sandboxes.ts'
import { sharedSettings } from './settings.ts'

/** A region with its driver, and its settings as if it were the only one. */
export interface OpenRegion extends Region {
  readonly sandboxes: AnyDriver
  readonly config: Config
  /** The folder of its local sandboxes. */
  readonly storage: string
  /** The hosts that its agents may reach although they are not public. */
  readonly operatorHosts: readonly HostRule[]
}

export interface OpenRegions extends Regions<OpenRegion> {
  /** The regions that a worker or a relay of this process serves. */
  served(): readonly OpenRegion[]
}

interface Parts {
  config: Config
  dataDir: string
  db: Db
  log: Logger
}

/**
 * Opens the drivers of all regions: those of CHOWDER_CONFIG_FILE, or one from the variables. Throws BadEnvironment and
 * StartupError.
 */
export async function openRegions({ config, dataDir, db, log }: Parts, create: CreateDriver): Promise<OpenRegions> {
  const file = config.CHOWDER_CONFIG_FILE
  const open = async (region: string, own: Config, storage: string) => {
    const sandboxes = await create({ region, config: own, dataDir, storage, db, log })
    const { relay, resources, baseUrls, warmPool } = sharedSettings(own)
    const common = { relay, resources, baseUrls, warmPool, operatorHosts: operatorHosts(own) }
    return { ...common, sandboxes, config: own, storage: resolve(storage) }
  }
  const openNamed = async ({ name, config: own, storage = dataDir }: RegionSettings, ofUnnamed: string) => {
    await prepareDataFolder(storage, `regions.${name}.storage`)
    const opened = await open(name, own, storage).catch((error: unknown) => {
      if (!(error instanceof StartupError)) throw error
      throw new StartupError(`region ${name}: ${error.message}`, { cause: error })
    })
    return { ...opened, region: name, hasUnnamed: name === ofUnnamed }
  }
  if (file === undefined) {
    const regions = onlyRegion(await open(config.SANDBOX_DRIVER, config, dataDir))
    const served = servedOf(regions.all(), config)
    return { ...regions, served: () => served }
  }
  const settings = readRegionsFile(file, config)
  const named = defaultOf(settings)
  const ofUnnamed = await regionOfUnnamed(db, named)
  const opened = await Promise.all(settings.map((one) => openNamed(one, ofUnnamed)))
  const served = servedOf(opened, config)
  return { ...createRegions({ regions: opened, default: named, areNamed: true }), served: () => served }
}

/** The disk of the data folder. Where all agents run in Kubernetes, none of them writes to it, and it has no floor. */
export const hostDiskOf = (dataDir: string, regions: readonly OpenRegion[]): HostDisk =>
  createHostDisk(dataDir, regions.every(({ config }) => config.SANDBOX_DRIVER === 'kubernetes') ? 0 : usualFloorMb)

const defaultOf = (settings: readonly RegionSettings[]): string =>
  (settings.find(({ isDefault }) => isDefault) as RegionSettings).name

/** The region of rows without one: the default of the time when regions were first named. */
const regionOfUnnamed = (db: Db, named: string) => storeOnce(db, 'region-of-rows-without-one', named)

/** The regions, without opening their drivers. Throws BadEnvironment. */
export async function regionPlaces({ config, db }: Pick<Parts, 'config' | 'db'>): Promise<RegionPlace[]> {
  if (config.CHOWDER_CONFIG_FILE === undefined) {
    return [{ region: config.SANDBOX_DRIVER, hasUnnamed: true, sandboxDriver: config.SANDBOX_DRIVER }]
  }
  const settings = readRegionsFile(config.CHOWDER_CONFIG_FILE, config)
  const ofUnnamed = await regionOfUnnamed(db, defaultOf(settings))
  return settings.map(({ name, config: own }) => ({
    region: name,
    hasUnnamed: name === ofUnnamed,
    sandboxDriver: own.SANDBOX_DRIVER,
  }))
}

/** The regions of CHOWDER_REGIONS, or all. Throws StartupError for an unknown one. */
function servedOf(regions: readonly OpenRegion[], { CHOWDER_REGIONS }: Config): readonly OpenRegion[] {
  const names = entriesOf(CHOWDER_REGIONS)
  const known = regions.map(({ region }) => region)
  for (const name of names) {
    if (!known.includes(name))
      throw new StartupError(`CHOWDER_REGIONS names ${name}, which is no region. There are: ${known.join(', ')}.`)
  }
  return names.length === 0 ? regions : regions.filter(({ region }) => names.includes(region))
}
