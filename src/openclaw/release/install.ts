import { mkdir, readFile, symlink } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { openclawVersion, packageCount, releaseFolder, releaseSource } from '#openclaw/releases.ts'
import type { Progress } from '#sandbox/driver.ts'
import { channelPlugin, channelPluginFolder } from './channel-plugins.ts'
import { makeCompileCache } from './compile-cache.ts'
import { installLocked } from './install-locked.ts'
import { exists } from './make-once.ts'
import { runProgram } from './run-program.ts'

export interface InstallOptions {
  dataDir: string
  release: string
  progress: Progress
  signal: AbortSignal
}

async function checkInstalled(folder: string, version: string): Promise<void> {
  const openclaw = join(folder, 'node_modules/openclaw')
  const manifest = JSON.parse(await readFile(join(openclaw, 'package.json'), 'utf8')) as { version?: unknown }
  if (manifest.version !== version || !(await exists(join(openclaw, 'openclaw.mjs')))) {
    throw new Error(`npm did not install openclaw ${version}`)
  }
}

/**
 * Runs OpenClaw's launcher once, which completes the install in place of the package's install script. The launcher of
 * an agent could not do it: the folder is then read-only and belongs to another user.
 */
async function completeInstall(folder: string, signal: AbortSignal): Promise<void> {
  const env = { PATH: '/usr/bin:/bin', HOME: folder, OPENCLAW_NO_AUTO_UPDATE: '1', OPENCLAW_OFFLINE: '1' }
  const openclaw = join(folder, 'node_modules/openclaw')
  await runProgram(process.execPath, [join(openclaw, 'openclaw.mjs'), '--version'], signal, { env })
  if (await exists(join(openclaw, '.openclaw-lifecycle-pending')))
    throw new Error('OpenClaw did not finish its install')
}

/** Installs a release on this host, with installLocked, and its compile cache. */
export async function installRelease({ dataDir, release, progress, signal }: InstallOptions): Promise<string> {
  const version = openclawVersion(release)
  const title = `OpenClaw ${version}`
  const folder = await installLocked({
    source: releaseSource(release),
    folder: releaseFolder(dataDir, release),
    title,
    packages: packageCount(release),
    async complete(folder, until) {
      await checkInstalled(folder, version)
      await completeInstall(folder, until)
    },
    progress,
    signal,
  })
  await makeCompileCache({ release, releaseFolder: folder, title, progress, signal })
  return folder
}

/**
 * Installs the plugin of a chat channel on this host, with installLocked, beside its release. The plugin loads the
 * release through a relative link, which also works where the two folders are mounted elsewhere.
 */
export function installChannelPlugin(options: InstallOptions & { channel: string }): Promise<string> {
  const { dataDir, release, channel, progress, signal } = options
  const { source, packageName, version, packages } = channelPlugin(release, channel)
  const openclaw = releaseFolder(dataDir, release)
  return installLocked({
    source,
    folder: channelPluginFolder(openclaw, release, channel),
    title: `${packageName} ${version}`,
    packages,
    // The release is a peer dependency of the plugin: npm would fetch a second copy.
    npmArgs: ['--omit=peer', '--legacy-peer-deps'],
    async complete(folder) {
      const plugin = join(folder, 'node_modules', packageName)
      if (!(await exists(join(plugin, 'openclaw.plugin.json'))))
        throw new Error(`npm installed no plugin ${packageName}`)
      const upwards = '../'.repeat(`node_modules/${packageName}/node_modules`.split('/').length + 1)
      await mkdir(join(plugin, 'node_modules'), { recursive: true })
      await symlink(`${upwards}${basename(openclaw)}/node_modules/openclaw`, join(plugin, 'node_modules/openclaw'))
    },
    progress,
    signal,
  })
}
