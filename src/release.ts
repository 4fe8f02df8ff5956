import './platform/node-version.ts'

import { parseArgs } from 'node:util'
import { pluginChannels } from './openclaw/channel-plugins.ts'
import { installChannelPlugin, installRelease } from './openclaw/install.ts'
import { knownReleases } from './openclaw/releases.ts'
import { loadConfig } from './platform/config.ts'
import { dataFolder, prepareDataFolder } from './platform/data-folder.ts'

const usage = () =>
  new Error(
    `usage: npm run release -- <release> [--channels <channel>,…]\n` +
      knownReleases()
        .map((release) => `  ${release}: ${pluginChannels(release).join(', ')}`)
        .join('\n'),
  )

/** Installs a release, and the plugins of channels, ahead of time, so that no instance waits for them. */
async function prepare(): Promise<void> {
  const { positionals, values } = parseArgs({ allowPositionals: true, options: { channels: { type: 'string' } } })
  const [release] = positionals
  if (release === undefined || positionals.length > 1 || !knownReleases().includes(release)) throw usage()
  const channels = values.channels?.split(',') ?? []
  if (!channels.every((channel) => pluginChannels(release).includes(channel))) throw usage()

  const dataDir = dataFolder(loadConfig().CHOWDER_DATA_DIR)
  await prepareDataFolder(dataDir)
  const interrupted = new AbortController()
  for (const name of ['SIGINT', 'SIGTERM'] as const)
    process.once(name, () => interrupted.abort(new Error('interrupted')))
  const options = { dataDir, release, progress: (line: string) => console.log(line), signal: interrupted.signal }
  console.log(await installRelease(options))
  for (const channel of channels) console.log(await installChannelPlugin({ ...options, channel }))
}

await prepare().catch((error: Error) => {
  console.error(error.message)
  process.exitCode = 1
})
