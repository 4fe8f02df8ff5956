import { join } from 'node:path'
import type { TestProject } from 'vitest/node'
import { pluginChannels } from '#openclaw/channel-plugins.ts'
import { installChannelPlugin, installRelease } from '#openclaw/install.ts'
import { defaultRelease } from '#openclaw/releases.ts'

declare module 'vitest' {
  interface ProvidedContext {
    /** The folder `releases` of a data folder in which the default release is installed. */
    releases: string
  }
}

/**
 * A data folder where OpenClaw is installed once, however many tests and runs need it. As root outside of the clone:
 * agents run as other users, who may not be able to enter it.
 */
const dataDir =
  process.getuid?.() === 0
    ? '/var/cache/chowder-test'
    : join(import.meta.dirname, '../../node_modules/.cache/chowder-test')

const installMs = 10 * 60_000

const options = () => ({
  dataDir,
  release: defaultRelease,
  progress: (line: string) => console.log(line),
  signal: AbortSignal.timeout(installMs),
})

/** The folder of the installed default release; the first call on a machine takes as long as the download. */
export const preparedRelease = (): Promise<string> => installRelease(options())

/** The same for the plugins of all channels: the agents of tests reach no registry. */
async function prepareChannels(): Promise<void> {
  for (const channel of pluginChannels(defaultRelease)) await installChannelPlugin({ ...options(), channel })
}

/** As a global setup of Vitest: no test's own time is spent on the download. */
export default async function setup(project: TestProject): Promise<void> {
  await preparedRelease()
  await prepareChannels()
  project.provide('releases', join(dataDir, 'releases'))
}
