import type { Db } from '#database/client.ts'
import { rememberFirst } from '#database/installation.ts'
import { linkCompileCache } from '#openclaw/compile-cache.ts'
import { installChannelPlugin, installRelease } from '#openclaw/install.ts'
import { releaseFolder } from '#openclaw/releases.ts'
import type { Config } from '#platform/config.ts'
import { nodeBinary } from '#platform/data-folder.ts'
import { newId } from '#platform/ids.ts'
import type { Logger } from '#platform/log.ts'
import type { DockerDriverOptions } from '#sandbox/docker/driver.ts'
import type { SandboxDriver } from '#sandbox/driver.ts'
import type { LocalDriver, LocalDriverOptions } from '#sandbox/local/driver.ts'
import { dockerSettings } from './docker-settings.ts'

/** What only some drivers can do. */
export type CreatedDriver = SandboxDriver & Partial<Pick<LocalDriver, 'stopAll' | 'orphans'>>

type DriverOptions = { name: 'local'; options: LocalDriverOptions } | { name: 'docker'; options: DockerDriverOptions }

/** Opens the driver of that name, and loads no other. It touches nothing before it is asked to. */
export async function createDriver(driver: DriverOptions): Promise<CreatedDriver> {
  if (driver.name === 'local') return (await import('#sandbox/local/driver.ts')).createLocalDriver(driver.options)
  return (await import('#sandbox/docker/driver.ts')).createDockerDriver(driver.options)
}

/** What sandboxes are opened with: the configuration, and the database of the installation that they belong to. */
export interface SandboxesOf {
  config: Config
  dataDir: string
  db: Db
  log: Logger
}

/** Opens what instances run in, as the configuration says. It touches no sandbox before it is asked to. */
export async function createSandboxes({ config, dataDir, db, log }: SandboxesOf): Promise<CreatedDriver> {
  if (config.SANDBOX_DRIVER === 'docker') {
    const installation = await rememberFirst(db, 'installation-id', newId())
    return createDriver({ name: 'docker', options: { ...(await dockerSettings(config)), installation } })
  }
  return createDriver({
    name: 'local',
    options: {
      dataDir,
      node: await nodeBinary(dataDir),
      installRelease: (release, progress, signal) => installRelease({ dataDir, release, progress, signal }),
      installChannelPlugin: (release, channel, progress, signal) =>
        installChannelPlugin({ dataDir, release, channel, progress, signal }),
      releaseFolder: (release) => releaseFolder(dataDir, release),
      linkCompileCache,
      log,
    },
  })
}
