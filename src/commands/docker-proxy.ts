import '#platform/node-version.ts'

import closeWithGrace from 'close-with-grace'
import { dockerSettings } from '#composition/docker-settings.ts'
import { knownReleases } from '#openclaw/releases.ts'
import { loadConfig } from '#platform/config.ts'
import { createLog } from '#platform/log.ts'
import { createDockerProxy } from '#sandbox/docker/proxy/proxy.ts'

const closingMs = 5000

/**
 * Serves what Chowder asks of dockerd, and nothing else, on a socket for the processes that serve the API and one for
 * workers: neither then has the socket of dockerd itself, which makes its holder root on the host.
 */
async function main(): Promise<void> {
  const config = loadConfig()
  const log = createLog(config.LOG_LEVEL, 'docker-proxy', process.stdout.isTTY)
  const { host, network, buildNetwork, extraCaFile, releaseSource } = await dockerSettings(config)
  const folder = config.DOCKER_PROXY_DIR
  const build = { network: buildNetwork, extraCaFile }
  const proxy = await createDockerProxy({ host, folder, network, build, releases: knownReleases(), releaseSource }, log)
  closeWithGrace({ delay: closingMs, logger: log }, async ({ err, signal }) => {
    if (err) log.fatal({ err }, 'crashed')
    else log.info({ signal }, 'shutting down')
    await proxy.close()
  })
  log.info({ folder }, 'two shares of dockerd are served')
}

await main().catch((error: Error) => {
  process.stderr.write(`chowder: ${error.message}\n`)
  process.exitCode = 1
})
