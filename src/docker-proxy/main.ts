import '#platform/node-version.mjs'

import closeWithGrace from 'close-with-grace'
import { dockerSettings } from '#composition/docker-settings.ts'
import { knownReleases } from '#openclaw/releases.ts'
import { createLog } from '#platform/log.ts'
import { loadConfig, unknownSettings } from '#settings/config.ts'
import { createDockerProxy } from './proxy.ts'

const closeTimeoutMs = 5000
/** The folder of the sockets `api/docker.sock` and `worker/docker.sock`. */
const folder = '/run/docker-proxy'

/**
 * Passes Chowder's calls on to dockerd, and refuses all others. The API has one socket of the proxy and workers have
 * another, so that neither needs the socket of dockerd, which is equivalent to root on the host.
 */
async function main(): Promise<void> {
  const config = loadConfig()
  const log = createLog(config, 'docker-proxy')
  for (const sentence of unknownSettings()) log.warn(sentence)
  const { buildNetwork, extraCaFile, nodeImage, ...settings } = await dockerSettings(config)
  const build = { network: buildNetwork, extraCaFile, nodeImage }
  const releases = knownReleases()
  const proxy = await createDockerProxy({ ...settings, folder, build, releases }, log)
  closeWithGrace({ delay: closeTimeoutMs, logger: log }, async ({ err, signal }) => {
    if (err) log.fatal({ err }, 'crashed')
    else log.info({ signal }, 'shutting down')
    await proxy.close()
  })
  log.info({ folder }, 'the proxy of dockerd is ready')
}

await main().catch((error: Error) => {
  process.stderr.write(`chowder: ${error.message}\n`)
  process.exitCode = 1
})
