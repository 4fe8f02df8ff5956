import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { releaseSource } from '#openclaw/releases.ts'
import type { SandboxAccess, SandboxPaths } from '#sandbox/driver.ts'

const execTimeoutMs = 30_000

/** The npm package of a chat channel that OpenClaw does not include. */
export interface ChannelPlugin {
  /** The folder of its `package.json` and `package-lock.json`. */
  source: string
  packageName: string
  version: string
  /** The least number of packages that npm installs, without packages bundled in the plugin's archive. */
  packages: number
  lockHash: string
}

const channelsFolder = (release: string) => join(releaseSource(release), 'channels')
const plugins = new Map<string, ChannelPlugin>()

/** The channels of a release that need a plugin, sorted by name. */
export const pluginChannels = (release: string): string[] => readdirSync(channelsFolder(release)).sort()

/** Whether a channel needs a plugin. OpenClaw includes the other channels. */
export const needsPlugin = (release: string, channel: string): boolean =>
  existsSync(join(channelsFolder(release), channel))

/** Throws for a channel that needs no plugin. */
export function channelPlugin(release: string, channel: string): ChannelPlugin {
  const key = `${release}/${channel}`
  const cached = plugins.get(key)
  if (cached) return cached
  const source = join(channelsFolder(release), channel)
  const packageName = `@openclaw/${channel}`
  const lock = readFileSync(join(source, 'package-lock.json'))
  const { packages } = JSON.parse(lock.toString('utf8')) as {
    packages: Record<string, { version?: string; optional?: boolean; peer?: boolean; inBundle?: boolean }>
  }
  const version = packages[`node_modules/${packageName}`]?.version
  if (!version) throw new Error(`the lock file of the channel ${channel} holds no ${packageName}`)
  const required = Object.values(packages).filter((entry) => entry.version && !entry.optional && !entry.peer)
  const plugin: ChannelPlugin = {
    source,
    packageName,
    version,
    packages: required.filter(({ inBundle }) => !inBundle).length,
    lockHash: createHash('sha256').update(lock).digest('hex'),
  }
  plugins.set(key, plugin)
  return plugin
}

/** The folder of an installed plugin: beside its release, on the host and in a sandbox alike. */
export const channelPluginFolder = (releaseFolder: string, release: string, channel: string): string =>
  `${releaseFolder}-${channel}-${channelPlugin(release, channel).lockHash.slice(0, 12)}`

/**
 * Links an installed plugin into a sandbox, running or stopped. Returns whether the link is new. OpenClaw trusts a
 * package in a folder of `npm/projects` as installed from npm, and accepts a link to the shared folder there. A running
 * gateway loads the plugin at `plugins.refresh`, a stopped one at its start. Throws an Error when the link cannot be
 * created, and the errors of SandboxAccess.
 */
export async function linkChannelPlugin(
  sandboxes: SandboxAccess,
  id: string,
  { paths, release, channel }: { paths: SandboxPaths; release: string; channel: string },
  signal: AbortSignal,
): Promise<boolean> {
  const { packageName, version } = channelPlugin(release, channel)
  const project = `state/npm/projects/chowder-${channel}`
  const link = `${paths.home}/${project}/node_modules`
  const target = `${channelPluginFolder(paths.release, release, channel)}/node_modules`
  const exec = (...argv: string[]) => sandboxes.exec(id, argv, { timeoutMs: execTimeoutMs }, signal)
  if ((await exec('readlink', link)).stdout.trim() === target) return false
  const manifest = JSON.stringify({ private: true, dependencies: { [packageName]: version } })
  await sandboxes.files(id).write(`${project}/package.json`, Buffer.from(manifest), { mode: 0o600 }, signal)
  const { exitCode, stderr } = await exec('ln', '-sfn', target, link)
  if (exitCode !== 0) throw new Error(`the plugin could not be linked into the sandbox: ${stderr.trim().slice(-500)}`)
  return true
}
