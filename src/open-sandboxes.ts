import { access, constants } from 'node:fs/promises'
import type { Db } from './database/client.ts'
import { rememberFirst } from './database/installation.ts'
import { installChannelPlugin, installRelease } from './openclaw/install.ts'
import { gatewayAdmission, releaseImage } from './openclaw/release-image.ts'
import { releaseFolder } from './openclaw/releases.ts'
import type { Config } from './platform/config.ts'
import { nodeBinary } from './platform/data-folder.ts'
import { newId } from './platform/ids.ts'
import type { Logger } from './platform/log.ts'
import { StartupError } from './platform/startup-error.ts'
import type { DockerDriverOptions } from './sandbox/docker/driver.ts'
import { type OpenedDriver, openDriver } from './sandbox/index.ts'

/** What sandboxes are opened with: the configuration, and the database of the installation that they belong to. */
export interface SandboxesOf {
  config: Config
  dataDir: string
  db: Db
  log: Logger
}

/** The Docker driver's settings, but for whose sandboxes they are. Throws a StartupError for a file that cannot be read. */
export async function dockerSettings(config: Config): Promise<Omit<DockerDriverOptions, 'installation'>> {
  const extraCaFile = config.DOCKER_EXTRA_CA_FILE ?? null
  if (extraCaFile !== null)
    await access(extraCaFile, constants.R_OK).catch((cause) => {
      throw new StartupError(
        'DOCKER_EXTRA_CA_FILE must be a file that Chowder can read. Set it to one with certificates in PEM, or leave it out.',
        { cause },
      )
    })
  return {
    host: config.DOCKER_HOST,
    reach: config.DOCKER_GATEWAY_ADDRESS,
    network: config.DOCKER_NETWORK,
    buildNetwork: config.DOCKER_BUILD_NETWORK,
    extraCaFile,
    releaseSource: releaseImage,
    admission: gatewayAdmission,
  }
}

/** Opens what instances run in, as the configuration says. It touches no sandbox before it is asked to. */
export async function openSandboxes({ config, dataDir, db, log }: SandboxesOf): Promise<OpenedDriver> {
  if (config.SANDBOX_DRIVER === 'docker') {
    const installation = await rememberFirst(db, 'installation-id', newId())
    return openDriver({ name: 'docker', options: { ...(await dockerSettings(config)), installation } })
  }
  return openDriver({
    name: 'local',
    options: {
      dataDir,
      node: await nodeBinary(dataDir),
      installRelease: (release, progress, signal) => installRelease({ dataDir, release, progress, signal }),
      installChannelPlugin: (release, channel, progress, signal) =>
        installChannelPlugin({ dataDir, release, channel, progress, signal }),
      releaseFolder: (release) => releaseFolder(dataDir, release),
      log,
    },
  })
}
