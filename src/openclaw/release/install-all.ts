import { rename, symlink } from 'node:fs/promises'
import { InstallError } from '#errors/install-error.ts'
import { compileCacheFolder } from '#openclaw/inside/launch.ts'
import { pluginChannels } from './channel-plugins.ts'
import { installChannelPlugin, installRelease } from './install.ts'

// `install-all.ts <release> <folder>` installs a release with the plugins of all its channels into an image.
const [release, dataDir] = process.argv.slice(2)
if (!release || !dataDir) throw new Error('usage: install-all <release> <folder>')
const options = {
  dataDir,
  release,
  progress: (line: string) => console.log(`chowder: ${line}`),
  signal: new AbortController().signal,
}
try {
  const cache = compileCacheFolder(await installRelease(options))
  // Its name has the user id, which each agent has of its own: user.sh links it in this folder.
  await rename(cache, `${cache}-made`).catch(() => {}) // without one, gateways only start more slowly
  await symlink('/run/chowder/compile-cache', cache)
  for (const channel of pluginChannels(release)) await installChannelPlugin({ ...options, channel })
} catch (error) {
  if (!(error instanceof InstallError)) throw error
  console.log(`${error.output}\nchowder-failure: ${error.message}`)
  process.exitCode = 1
}
