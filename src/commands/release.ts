import '#platform/node-version.mjs'

import { channelNames } from '#api/channels/catalogue.ts'
import { dockerSettings } from '#composition/docker-settings.ts'
import { createDocker } from '#composition/sandboxes.ts'
import { InstallError } from '#errors/install-error.ts'
import { StartupError } from '#errors/startup-error.ts'
import { needsPlugin, pluginChannels } from '#openclaw/release/channel-plugins.ts'
import { installChannelPlugin, installRelease } from '#openclaw/release/install.ts'
import { knownReleases } from '#openclaw/releases.ts'
import { didYouMean, parseCommandLine } from '#platform/command-line.ts'
import { dataFolder, prepareDataFolder } from '#platform/data-folder.ts'
import { loadConfig, unknownSettings } from '#settings/config.ts'

const usage = `usage: npm run release -- <release> [--driver local|docker] [--channels <channel>,…]
  Installs the release on this host, or builds its Docker image, which has the plugin of every channel.
${knownReleases()
  .map((release) => `  ${release}, with plugins for: ${pluginChannels(release).join(', ')}`)
  .join('\n')}`

const drivers = ['local', 'docker']

/** Parses the command line. Throws StartupError with the wrong word. */
function readCommandLine(): { release: string; driver: string | undefined; channels: string[] } {
  const { positionals, values } = parseCommandLine(usage, { channels: { type: 'string' }, driver: { type: 'string' } })
  const [release, ...others] = positionals
  if (release === undefined) throw new StartupError(usage)
  if (!knownReleases().includes(release))
    throw new StartupError(`There is no release ${release}.${didYouMean(release, knownReleases())}`)
  if (others.length > 0)
    throw new StartupError(
      `There is no use for ${others.join(' ')}: name one release, and its channels with --channels.`,
    )
  const { driver } = values
  if (driver !== undefined && !drivers.includes(driver))
    throw new StartupError(`There is no driver ${driver}.${didYouMean(driver, drivers)}`)
  const channels = values.channels?.split(',') ?? []
  const unknown = channels.find((channel) => !channelNames.includes(channel))
  if (unknown !== undefined)
    throw new StartupError(`There is no channel ${unknown}.${didYouMean(unknown, channelNames)}`)
  return { release, driver, channels }
}

/** Prints the progress of an installation; one without progress had nothing to do. */
function createReport() {
  let hasReported = false
  return {
    progress(line: string, isPassing = false): void {
      hasReported = true
      // On a terminal the next line replaces a temporary one.
      process.stdout.write(isPassing && process.stdout.isTTY ? `\x1b[2K${line}\r` : `${line}\n`)
    },
    end: (what: string): void => console.log(hasReported ? `installed: ${what}` : `already installed: ${what}`),
  }
}

/** Prepares a release ahead of time, with the plugins of channels, so that no instance has to wait for it. */
async function main(): Promise<void> {
  const { release, channels, ...asked } = readCommandLine()
  for (const sentence of unknownSettings()) console.error(sentence)
  const config = loadConfig()
  const driver = asked.driver ?? config.SANDBOX_DRIVER

  const interrupted = new AbortController()
  for (const name of ['SIGINT', 'SIGTERM'] as const)
    process.once(name, () => interrupted.abort(new Error('interrupted')))
  const { signal } = interrupted
  const report = createReport()
  // Kubernetes uses the same image: the owner of a registry names it there.
  if (driver !== 'local') {
    const docker = await createDocker({ ...(await dockerSettings(config)), installation: '' })
    await docker.prepare(release, report.progress, signal)
    return report.end(`the image of ${release}, with the plugin of every channel`)
  }
  const dataDir = dataFolder(config.CHOWDER_DATA_DIR)
  await prepareDataFolder(dataDir)
  const options = { dataDir, release, signal }
  report.end(await installRelease({ ...options, progress: report.progress }))
  for (const channel of channels) {
    if (!needsPlugin(release, channel)) {
      console.log(`${channel} needs no plugin`)
      continue
    }
    const { progress, end } = createReport()
    end(await installChannelPlugin({ ...options, progress, channel }))
  }
}

await main().catch((error: Error) => {
  console.error(error.message)
  if (error instanceof InstallError && !error.isExplained) console.error(error.output)
  process.exitCode = 1
})
