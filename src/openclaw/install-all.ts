import { pluginChannels } from './channel-plugins.ts'
import { installChannelPlugin, installRelease } from './install.ts'

// `install-all.ts <release> <folder>`: installs a release with the plugins of all its channels, in the build of an image.
const [release, dataDir] = process.argv.slice(2)
if (!release || !dataDir) throw new Error('usage: install-all <release> <folder>')
const options = {
  dataDir,
  release,
  progress: (line: string) => console.log(`chowder: ${line}`),
  signal: new AbortController().signal,
}
await installRelease(options)
for (const channel of pluginChannels(release)) await installChannelPlugin({ ...options, channel })
