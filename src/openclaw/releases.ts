import { createHash } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

const root = join(import.meta.dirname, '../../releases')

/** The release of an instance whose creator selects none. */
export const defaultRelease = 'v1'

const known = readdirSync(root, { withFileTypes: true })
  .filter((entry) => entry.isDirectory())
  .map((entry) => entry.name)
  .sort()

/** The names of all releases that Chowder ships, sorted. */
export const knownReleases = (): readonly string[] => known

/**
 * The folder of a release's package files (`package.json`, `package-lock.json`) and metadata (`models.json`).
 * Throws for an unknown release.
 */
export function releaseSource(release: string): string {
  if (!known.includes(release)) throw new Error(`no release ${JSON.stringify(release)}: there are ${known.join(', ')}`)
  return join(root, release)
}

interface ReleaseMetadata {
  openclawVersion: string
  packages: number
  lockHash: string
}

const metadata = new Map<string, ReleaseMetadata>()

function metadataOf(release: string): ReleaseMetadata {
  const cached = metadata.get(release)
  if (cached) return cached
  const source = releaseSource(release)
  const lock = readFileSync(join(source, 'package-lock.json'))
  const { packages } = JSON.parse(lock.toString('utf8')) as {
    packages: Record<string, { version?: string; optional?: boolean }>
  }
  const openclawVersion = packages['node_modules/openclaw']?.version
  if (!openclawVersion) throw new Error(`the lock file of release ${release} holds no openclaw`)
  const loaded: ReleaseMetadata = {
    openclawVersion,
    packages: Object.values(packages).filter((entry) => entry.version && !entry.optional).length,
    lockHash: createHash('sha256').update(lock).digest('hex'),
  }
  metadata.set(release, loaded)
  return loaded
}

/** The version of the package `openclaw` that the release locks. */
export const openclawVersion = (release: string): string => metadataOf(release).openclawVersion

/** The least number of packages that npm installs: optional packages depend on the machine. */
export const packageCount = (release: string): number => metadataOf(release).packages

/** The folder of all installed releases and plugins on this host. */
export const releasesFolder = (dataDir: string): string => join(dataDir, 'releases')

/**
 * The folder of an installed release on this host. Its name contains the hash of the lock file: a changed lock file is
 * installed into another folder, and running agents keep theirs.
 */
export const releaseFolder = (dataDir: string, release: string): string =>
  join(releasesFolder(dataDir), `${release}-${metadataOf(release).lockHash.slice(0, 12)}`)
