import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { SandboxAccess, SandboxPaths } from '#sandbox/driver.ts'
import { releaseSource } from './releases.ts'

const execTimeoutMs = 30_000

/** What installs the plugin of a chat channel that OpenClaw does not bring along. */
export interface ChannelPlugin {
  /** The folder of its `package.json` and `package-lock.json`. */
  source: string
  packageName: string
  version: string
  /** How many packages it has at least: those inside its own archive do not count. */
  packages: number
  lockHash: string
}

const folderOf = (release: string) => join(releaseSource(release), 'channels')
const plugins = new Map<string, ChannelPlugin>()

/** The channels of a release that need a plugin, in order. */
export const pluginChannels = (release: string): string[] => readdirSync(folderOf(release)).sort()

/** Whether a channel needs a plugin; OpenClaw speaks the others by itself. */
export const needsPlugin = (release: string, channel: string): boolean => existsSync(join(folderOf(release), channel))

/** Throws for a channel that needs none. */
export function channelPlugin(release: string, channel: string): ChannelPlugin {
  const key = `${release}/${channel}`
  const before = plugins.get(key)
  if (before) return before
  const source = join(folderOf(release), channel)
  const packageName = `@openclaw/${channel}`
  const lock = readFileSync(join(source, 'package-lock.json'))
  const { packages } = JSON.parse(lock.toString('utf8')) as {
    packages: Record<string, { version?: string; optional?: boolean; peer?: boolean; inBundle?: boolean }>
  }
  const version = packages[`node_modules/${packageName}`]?.version
  if (!version) throw new Error(`the lock file of the channel ${channel} holds no ${packageName}`)
  const fetched = Object.values(packages).filter((entry) => entry.version && !entry.optional && !entry.peer)
  const now: ChannelPlugin = {
    source,
    packageName,
    version,
    packages: fetched.filter(({ inBundle }) => !inBundle).length,
    lockHash: createHash('sha256').update(lock).digest('hex'),
  }
  plugins.set(key, now)
  return now
}

/** Where an installed plugin is: beside its release, as seen from wherever that folder's path holds. */
export const channelPluginFolder = (releaseFolder: string, release: string, channel: string): string =>
  `${releaseFolder}-${channel}-${channelPlugin(release, channel).lockHash.slice(0, 12)}`

/**
 * Puts a prepared plugin into a sandbox, running or not, and answers whether it is new there. OpenClaw takes what lies
 * in a folder of `npm/projects` for installed from npm, and so for what it claims to be; a link to the shared folder
 * does, so that nothing is copied or fetched. A running gateway loads it at `plugins.refresh`, others at their start.
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
  if (exitCode !== 0) throw new Error(`the plugin could not be put into the sandbox: ${stderr.trim().slice(-500)}`)
  return true
}
