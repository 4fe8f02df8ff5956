import { access, constants } from 'node:fs/promises'
import { gatewayAdmission, releaseImage } from '#openclaw/release-image.ts'
import type { Config } from '#platform/config.ts'
import { StartupError } from '#platform/startup-error.ts'
import type { DockerDriverOptions } from '#sandbox/docker/driver.ts'
import { agentUid } from '#sandbox/docker/profile.ts'

/**
 * The Docker driver's settings, but for whose sandboxes they are. Throws a StartupError for a file that cannot be read.
 */
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
    releaseSource: (release) => releaseImage(release, agentUid),
    admission: gatewayAdmission,
  }
}
