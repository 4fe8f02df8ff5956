import { readdirSync } from 'node:fs'
import { join, relative } from 'node:path'
import { configPath } from './launch.ts'
import { releaseFolder, releaseSource } from './releases.ts'

const root = join(import.meta.dirname, '../..')
const installFiles = [
  'openclaw/channel-plugins.ts',
  'openclaw/compile-cache.ts',
  'openclaw/config.ts',
  'openclaw/health.ts',
  'openclaw/install-all.ts',
  'openclaw/install-locked.ts',
  'openclaw/install.ts',
  'openclaw/json.ts',
  'openclaw/launch.ts',
  'openclaw/make-once.ts',
  'openclaw/providers.ts',
  'openclaw/releases.ts',
  'openclaw/run-program.ts',
  'platform/free-port.ts',
  'platform/poll.ts',
]

function filesBelow(folder: string): string[] {
  const entries = readdirSync(folder, { withFileTypes: true, recursive: true })
  return entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name))
}

/**
 * What a container image of a release is made from: the files, relative to `root`, and the command that installs the
 * release with the plugins of all its channels from them, into the folder that is its last argument. Its agents run as the
 * user `uid`.
 */
export function releaseImage(release: string, uid: number) {
  const released = filesBelow(releaseSource(release)).map((path) => relative(root, path))
  return {
    root,
    files: [...installFiles.map((name) => `src/${name}`), ...released].sort(),
    install: `node src/openclaw/install-all.ts ${release} ${uid}`,
    folder: (base: string) => releaseFolder(base, release),
  }
}

/** Who may be let through to a gateway from outside its own host: who has its token, and who asks how it is. */
export const gatewayAdmission = {
  tokenFile: configPath,
  tokenKeys: ['gateway', 'auth', 'token'],
  openPaths: ['/healthz', '/startupz', '/readyz'],
} as const
