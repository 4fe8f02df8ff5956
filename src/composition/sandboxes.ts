import type { Db } from '#database/client.ts'
import { storeOnce } from '#database/installation.ts'
import { linkCompileCache } from '#openclaw/compile-cache.ts'
import { installChannelPlugin, installRelease } from '#openclaw/install.ts'
import { releaseFolder } from '#openclaw/releases.ts'
import { type Config, rangeOf } from '#platform/config.ts'
import { hostId, nodeBinary } from '#platform/data-folder.ts'
import type { Logger } from '#platform/log.ts'
import { StartupError } from '#platform/startup-error.ts'
import type { DockerDriverOptions } from '#sandbox/docker/driver.ts'
import type { SandboxDriver } from '#sandbox/driver.ts'
import type { LocalDriver } from '#sandbox/local/driver.ts'
import { measureDriver } from '#sandbox/measured.ts'
import { dockerSettings } from './docker-settings.ts'
import { installationId } from './installation.ts'
import type { Startup } from './startup.ts'

/** A driver, with the methods of those drivers whose agents are processes of this host. */
export type AnyDriver = SandboxDriver & Partial<Pick<LocalDriver, 'stopAll' | 'orphans'>>

export interface DriverParts {
  config: Config
  dataDir: string
  /** Holds the id of the installation that the sandboxes belong to. */
  db: Db
  log: Logger
}

export type CreateDriver = (parts: DriverParts) => Promise<AnyDriver>

/** Creates the Docker driver, and loads its code. */
export async function createDocker(options: DockerDriverOptions): Promise<SandboxDriver> {
  const { createDockerDriver } = await import('#sandbox/docker/driver.ts')
  return createDockerDriver(options)
}

/** Creates the driver of SANDBOX_DRIVER, and loads the code of no other. It does nothing to sandboxes before a call. */
export async function createDriver({ config, dataDir, db, log }: DriverParts): Promise<AnyDriver> {
  if (config.SANDBOX_DRIVER === 'docker') {
    const installation = await installationId(db)
    return createDocker({ ...(await dockerSettings(config)), installation, log })
  }
  const { createLocalDriver } = await import('#sandbox/local/driver.ts')
  return createLocalDriver({
    dataDir,
    node: await nodeBinary(dataDir),
    installRelease: (release, progress, signal) => installRelease({ dataDir, release, progress, signal }),
    installChannelPlugin: (release, channel, progress, signal) =>
      installChannelPlugin({ dataDir, release, channel, progress, signal }),
    releaseFolder: (release) => releaseFolder(dataDir, release),
    linkCompileCache,
    uids: rangeOf(config.LOCAL_UIDS),
    log,
  })
}

/**
 * Opens the driver, and measures its calls. Throws StartupError when its agents are processes of one host, and this
 * database's agents run on another.
 */
export async function openSandboxes(startup: Startup, db: Db, create: CreateDriver): Promise<AnyDriver> {
  const { config, dataDir, log } = startup
  const sandboxes = measureDriver(await create({ config, dataDir, db, log }))
  if (sandboxes.stopAll) await claimHost(db, dataDir)
  return sandboxes
}

async function claimHost(db: Db, dataDir: string): Promise<void> {
  const own = await hostId(dataDir)
  const known = await storeOnce(db, 'local-host-id', own)
  if (known === own) return
  throw new StartupError(
    "SANDBOX_DRIVER=local is for one host, and this database's agents are on another (or CHOWDER_DATA_DIR is not theirs). " +
      'For more than one host use SANDBOX_DRIVER=docker, with a DOCKER_HOST that all of them reach.',
  )
}
