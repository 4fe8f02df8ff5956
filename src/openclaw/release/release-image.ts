import { readdirSync } from 'node:fs'
import { join, relative } from 'node:path'
import { secretsPath } from '#openclaw/inside/launch.ts'
import { releaseFolder, releaseSource } from '#openclaw/releases.ts'

const root = join(import.meta.dirname, '../../..')
const installFiles = [
  'errors/install-error.ts',
  'openclaw/config/config.ts',
  'openclaw/config/room.ts',
  'openclaw/gateway/health.ts',
  'openclaw/inside/first-state.mjs',
  'openclaw/inside/forget-runs.mjs',
  'openclaw/inside/keep-drain.mjs',
  'openclaw/inside/launch.ts',
  'openclaw/inside/mask-output.mjs',
  'openclaw/inside/proxied-names.mjs',
  'openclaw/inside/proxy-from-secrets.mjs',
  'openclaw/json.ts',
  'openclaw/models/agent-models.ts',
  'openclaw/models/models.ts',
  'openclaw/models/providers.ts',
  'openclaw/release/channel-plugins.ts',
  'openclaw/release/compile-cache.ts',
  'openclaw/release/first-state.ts',
  'openclaw/release/install-all.ts',
  'openclaw/release/install-locked.ts',
  'openclaw/release/install.ts',
  'openclaw/release/make-once.ts',
  'openclaw/release/run-program.ts',
  'openclaw/releases.ts',
  'platform/free-port.ts',
  'platform/poll.ts',
]

function filesBelow(folder: string): string[] {
  const entries = readdirSync(folder, { withFileTypes: true, recursive: true })
  return entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name))
}

/**
 * The build of a release's container image. `files` are relative to `root`. The command `install` takes a folder as its
 * last argument, and installs the release with the plugins of all its channels there.
 */
export function releaseImage(release: string) {
  const released = filesBelow(releaseSource(release)).map((path) => relative(root, path))
  return {
    root,
    files: [...installFiles.map((name) => `src/${name}`), ...released].sort(),
    install: `node src/openclaw/release/install-all.ts ${release}`,
    folder: (base: string) => releaseFolder(base, release),
  }
}

/** The requests that a driver may pass to a gateway from outside its host: those with its token, and health checks. */
export const gatewayAdmission = {
  tokenFile: secretsPath,
  tokenKeys: ['gatewayToken'],
  openPaths: ['/healthz', '/startupz', '/readyz'],
} as const
