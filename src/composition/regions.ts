import { resolve } from 'node:path'
import type { Db } from '#database/client.ts'
import { storeOnce } from '#database/installation.ts'
import { createRegions, onlyRegion, type Region, type Regions } from '#instances/regions.ts'
import type { Config } from '#platform/config.ts'
import { prepareDataFolder } from '#platform/data-folder.ts'
import { entriesOf } from '#platform/exposure.ts'
import type { Logger } from '#platform/log.ts'
import { type RegionSettings, readRegionsFile } from '#platform/regions-file.ts'
import { StartupError } from '#platform/startup-error.ts'
import type { AnyDriver, CreateDriver } from './sandboxes.ts'
import { sharedSettings } from './settings.ts'

/** A region with its driver, and its settings as if it were the only one. */
export interface OpenRegion extends Region {
  readonly sandboxes: AnyDriver
  readonly config: Config
  /** The folder of its local sandboxes. */
  readonly storage: string
}

export interface OpenRegions extends Regions<OpenRegion> {
  /** Those that a worker or a relay of this process serves. */
  served(): readonly OpenRegion[]
}

interface Parts {
  config: Config
  dataDir: string
  db: Db
  log: Logger
}

/**
 * Opens the drivers of all regions: those of CHOWDER_CONFIG_FILE, or one as the variables say. Throws BadEnvironment
 * and StartupError.
 */
export async function openRegions({ config, dataDir, db, log }: Parts, create: CreateDriver): Promise<OpenRegions> {
  const file = config.CHOWDER_CONFIG_FILE
  const open = async (settings: Omit<RegionSettings, 'name' | 'isDefault'>, name?: string) => {
    const { config: own, storage = dataDir } = settings
    if (name !== undefined) await prepareDataFolder(storage, `regions.${name}.storage`)
    const sandboxes = await create({ config: own, dataDir, storage, db, log }).catch((error: unknown) => {
      if (name === undefined || !(error instanceof StartupError)) throw error
      throw new StartupError(`region ${name}: ${error.message}`, { cause: error })
    })
    const { relay, resources, baseUrls } = sharedSettings(own)
    return { sandboxes, relay, resources, baseUrls, config: own, storage: resolve(storage) }
  }
  if (file === undefined) {
    return withServed(onlyRegion(await open({ config, storage: undefined })), config)
  }
  const settings = readRegionsFile(file, config)
  const named = (settings.find(({ isDefault }) => isDefault) as RegionSettings).name
  const ofUnnamed = await storeOnce(db, 'region-of-rows-without-one', named)
  const regions = await Promise.all(
    settings.map(async (one) => ({
      ...(await open(one, one.name)),
      region: one.name,
      hasUnnamed: one.name === ofUnnamed,
    })),
  )
  return withServed(createRegions<OpenRegion>({ regions, default: named, areNamed: true }), config)
}

/** Adds which regions CHOWDER_REGIONS names. Throws StartupError for one that there is not. */
function withServed(regions: Regions<OpenRegion>, { CHOWDER_REGIONS }: Config): OpenRegions {
  const names = entriesOf(CHOWDER_REGIONS)
  const all = regions.all()
  const known = all.map(({ region }) => region)
  for (const name of names) {
    if (!known.includes(name))
      throw new StartupError(`CHOWDER_REGIONS names ${name}, which is no region. There are: ${known.join(', ')}.`)
  }
  const served = names.length === 0 ? all : all.filter(({ region }) => names.includes(region))
  return { ...regions, served: () => served }
}
