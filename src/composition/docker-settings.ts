import { access, constants, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createSecureContext } from 'node:tls'
import { StartupError } from '#errors/startup-error.ts'
import { gatewayAdmission, releaseImage } from '#openclaw/release/release-image.ts'
import type { DockerTls } from '#sandbox/docker/docker-client.ts'
import type { DockerDriverOptions } from '#sandbox/docker/driver.ts'
import type { Config } from '#settings/config.ts'

/**
 * The settings of the Docker driver without the installation. A separate file, so that the Docker proxy does not load
 * the code of the database and of installs. Throws StartupError when a file of a setting cannot be read.
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
  const { DOCKER_PUBLISH_ADDRESS, RELAY_URL } = config
  const publishAddress = DOCKER_PUBLISH_ADDRESS === 'none' ? null : DOCKER_PUBLISH_ADDRESS
  return {
    dockerd: { host: config.DOCKER_HOST, tls: await readTls(config.DOCKER_CERT_PATH) },
    publishAddress,
    // The networks of docker-compose.yml, where the relay is in a container: the agents' network has no way out.
    network: publishAddress === null ? 'chowder-sandbox' : 'chowder-agents',
    egressNetwork: publishAddress === null ? 'chowder-agents' : null,
    relayPort: publishAddress !== null && !RELAY_URL ? config.RELAY_PORT : null,
    relayUrl: RELAY_URL ? new URL(RELAY_URL).origin : null,
    buildNetwork: config.DOCKER_BUILD_NETWORK,
    extraCaFile,
    nodeImage: config.DOCKER_NODE_IMAGE,
    releaseSource: releaseImage,
    admission: gatewayAdmission,
  }
}

/** The file names are those of the docker command. */
async function readTls(folder: string | undefined): Promise<DockerTls | null> {
  if (folder === undefined) return null
  const read = (name: string) =>
    readFile(join(folder, name)).catch((cause) => {
      throw new StartupError(
        `DOCKER_CERT_PATH must be a folder with ca.pem, cert.pem and key.pem that Chowder can read; ${name} cannot be read. Correct it or remove it.`,
        { cause },
      )
    })
  const [ca, cert, key] = await Promise.all([read('ca.pem'), read('cert.pem'), read('key.pem')])
  const files = { ca, cert, key }
  try {
    createSecureContext(files)
  } catch (cause) {
    throw new StartupError(
      'DOCKER_CERT_PATH must be a folder with ca.pem, cert.pem and key.pem in PEM, and key.pem must be the key of cert.pem. Correct the files.',
      { cause },
    )
  }
  return files
}
