import { InstallError } from '#errors/install-error.ts'
import { pluginChannels } from './channel-plugins.ts'
import { linkCompileCache } from './compile-cache.ts'
import { installChannelPlugin, installRelease } from './install.ts'

// `install-all.ts <release> <uid> <folder>` installs a release with the plugins of all its channels into an image.
// The agents of the image run as the user with this uid.
const [release, uid, dataDir] = process.argv.slice(2)
if (!release || !uid || !dataDir) throw new Error('usage: install-all <release> <uid> <folder>')
const options = {
  dataDir,
  release,
  progress: (line: string) => console.log(`chowder: ${line}`),
  signal: new AbortController().signal,
}
try {
  await linkCompileCache(await installRelease(options), Number(uid))
  for (const channel of pluginChannels(release)) await installChannelPlugin({ ...options, channel })
} catch (error) {
  if (!(error instanceof InstallError)) throw error
  console.log(`${error.output}\nchowder-failure: ${error.message}`)
  process.exitCode = 1
}
