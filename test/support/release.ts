import { join } from 'node:path'
import pMap from 'p-map'
import { pluginChannels } from '#openclaw/release/channel-plugins.ts'
import { installChannelPlugin, installRelease } from '#openclaw/release/install.ts'
import { defaultRelease } from '#openclaw/releases.ts'

/**
 * The data folder in which OpenClaw is installed once for all tests and runs. As root it is outside of the clone:
 * agents run as other users, who may not be allowed to enter the clone.
 */
const dataDir =
  process.getuid?.() === 0
    ? '/var/cache/chowder-test'
    : join(import.meta.dirname, '../../node_modules/.cache/chowder-test')

/** The folder `releases` of that data folder. */
export const releasesFolder = join(dataDir, 'releases')

const installMs = 10 * 60_000

const options = () => ({
  dataDir,
  release: defaultRelease,
  progress: (line: string) => console.log(line),
  signal: AbortSignal.timeout(installMs),
})

/** Returns the folder of the default release; the first call on a machine installs it, which takes about a minute. */
export const preparedRelease = (): Promise<string> => installRelease(options())

/** Installs the plugins of all channels too: the agents of tests reach no registry. */
export async function prepareChannels(): Promise<void> {
  await preparedRelease()
  const install = (channel: string) => installChannelPlugin({ ...options(), channel })
  await pMap(pluginChannels(defaultRelease), install, { concurrency: 3 })
}
