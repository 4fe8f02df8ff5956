import { access, constants } from 'node:fs/promises'
import { gatewayAdmission, releaseImage } from '#openclaw/release-image.ts'
import type { Config } from '#platform/config.ts'
import { StartupError } from '#platform/startup-error.ts'
import type { DockerDriverOptions } from '#sandbox/docker/driver.ts'
import { agentUid } from '#sandbox/docker/profile.ts'

/**
 * The settings of the Docker driver without the installation. In a file of its own, so that the Docker proxy loads no
 * code of the database and of installs. Throws StartupError when DOCKER_EXTRA_CA_FILE cannot be read.
 */
export async function dockerSettings(config: Config): Promise<Omit<DockerDriverOptions, 'installation'>> {
  const extraCaFile = config.DOCKER_EXTRA_CA_FILE ?? null
  if (extraCaFile !== null)
    await access(extraCaFile, constants.R_OK).catch((cause) => {
      throw new StartupError(
        'DOCKER_EXTRA_CA_FILE must be a file that Chowder can read, with certificates in PEM. Correct it or remove it.',
        { cause },
      )
    })
  return {
    host: config.DOCKER_HOST,
    reach: config.DOCKER_GATEWAY_ADDRESS,
    network: config.DOCKER_NETWORK,
    buildNetwork: config.DOCKER_BUILD_NETWORK,
    extraCaFile,
    releaseSource: (release) => releaseImage(release, agentUid),
    admission: gatewayAdmission,
  }
}
