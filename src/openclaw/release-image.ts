import { readdirSync } from 'node:fs'
import { join, relative } from 'node:path'
import { secretsPath } from './launch.ts'
import { releaseFolder, releaseSource } from './releases.ts'

const root = join(import.meta.dirname, '../..')
const installFiles = [
  'openclaw/agent-models.ts',
  'openclaw/channel-plugins.ts',
  'openclaw/compile-cache.ts',
  'openclaw/config.ts',
  'openclaw/forget-runs.mjs',
  'openclaw/health.ts',
  'openclaw/install-all.ts',
  'openclaw/install-locked.ts',
  'openclaw/install.ts',
  'openclaw/json.ts',
  'openclaw/keep-drain.mjs',
  'openclaw/launch.ts',
  'openclaw/make-once.ts',
  'openclaw/mask-output.mjs',
  'openclaw/models.ts',
  'openclaw/providers.ts',
  'openclaw/proxied-names.mjs',
  'openclaw/proxy-from-secrets.mjs',
  'openclaw/releases.ts',
  'openclaw/room.ts',
  'openclaw/run-program.ts',
  'platform/free-port.ts',
  'platform/install-error.ts',
  'platform/poll.ts',
]

function filesBelow(folder: string): string[] {
  const entries = readdirSync(folder, { withFileTypes: true, recursive: true })
  return entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name))
}

/**
 * The build of a release's container image for agents of the user `uid`. `files` are relative to `root`. The command
 * `install` takes a folder as its last argument, and installs the release with the plugins of all its channels there.
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

/** The requests that a driver may pass to a gateway from outside its host: those with its token, and health checks. */
export const gatewayAdmission = {
  tokenFile: secretsPath,
  tokenKeys: ['gatewayToken'],
  openPaths: ['/healthz', '/startupz', '/readyz'],
} as const
