import '#platform/node-version.ts'

import { parseArgs } from 'node:util'
import { dockerSettings } from '#composition/docker-settings.ts'
import { createDocker } from '#composition/sandboxes.ts'
import { pluginChannels } from '#openclaw/channel-plugins.ts'
import { installChannelPlugin, installRelease } from '#openclaw/install.ts'
import { knownReleases } from '#openclaw/releases.ts'
import { loadConfig } from '#platform/config.ts'
import { dataFolder, prepareDataFolder } from '#platform/data-folder.ts'

const usage = () =>
  new Error(
    `usage: npm run release -- <release> [--driver local|docker] [--channels <channel>,…]\n` +
      `  Installs the release on this host, or builds its Docker image, which has the plugin of every channel.\n` +
      knownReleases()
        .map((release) => `  ${release}: ${pluginChannels(release).join(', ')}`)
        .join('\n'),
  )

const printLine = (line: string) => console.log(line)

/** Prepares a release ahead of time, with the plugins of channels, so that no instance has to wait for it. */
async function main(): Promise<void> {
  const { positionals, values } = parseArgs({
    allowPositionals: true,
    options: { channels: { type: 'string' }, driver: { type: 'string' } },
  })
  const [release] = positionals
  if (release === undefined || positionals.length > 1 || !knownReleases().includes(release)) throw usage()
  const channels = values.channels?.split(',') ?? []
  if (!channels.every((channel) => pluginChannels(release).includes(channel))) throw usage()

  const config = loadConfig()
  const driver = values.driver ?? config.SANDBOX_DRIVER
  if (driver !== 'local' && driver !== 'docker') throw usage()

  const interrupted = new AbortController()
  for (const name of ['SIGINT', 'SIGTERM'] as const)
    process.once(name, () => interrupted.abort(new Error('interrupted')))
  const { signal } = interrupted
  if (driver === 'docker') {
    const docker = await createDocker({ ...(await dockerSettings(config)), installation: '' })
    await docker.prepare(release, printLine, signal)
    return console.log(`the image of ${release} is ready`)
  }
  const dataDir = dataFolder(config.CHOWDER_DATA_DIR)
  await prepareDataFolder(dataDir)
  const options = { dataDir, release, progress: printLine, signal }
  console.log(await installRelease(options))
  for (const channel of channels) console.log(await installChannelPlugin({ ...options, channel }))
}

await main().catch((error: Error) => {
  console.error(error.message)
  process.exitCode = 1
})
