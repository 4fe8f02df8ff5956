import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { openclawVersion } from '#openclaw/releases.ts'

/** A published vulnerability of OpenClaw. */
export interface Advisory {
  /** The number of a CVE or of a GitHub advisory. */
  id: string
  /** The first fixed version. */
  fixed_in: string
  severity: 'low' | 'medium' | 'high' | 'critical'
  summary: string
  /** The URL of the published record. */
  source: string
}

/** Vulnerabilities that matter to a gateway behind Chowder; the list is not complete. */
const advisories: readonly Advisory[] = JSON.parse(
  readFileSync(join(import.meta.dirname, '../../../releases/advisories.json'), 'utf8'),
)

/**
 * Whether a version of OpenClaw precedes another one. A suffix with a word, such as `-beta.1`, precedes the version
 * itself; a numeric one, such as `-2`, is a correction of it.
 */
export function isOlder(version: string, other: string): boolean {
  const [a, b] = [version, other].map((text) => {
    const [numbers = '', suffix] = text.split(/-(.*)/)
    const isBefore = suffix !== undefined && !/^\d+$/.test(suffix)
    return [...numbers.split('.').map(Number), isBefore ? 0 : 1]
  }) as [number[], number[]]
  const index = a.findIndex((part, place) => part !== b[place])
  return index >= 0 && (a[index] ?? 0) < (b[index] ?? 0)
}

/** The first version of OpenClaw without a vulnerability in the list. */
export const firstGoodVersion = advisories
  .map(({ fixed_in }) => fixed_in)
  .reduce((newest, version) => (isOlder(newest, version) ? version : newest))

/** The known vulnerabilities of a release. */
export const advisoriesOf = (release: string): Advisory[] =>
  advisories.filter(({ fixed_in }) => isOlder(openclawVersion(release), fixed_in))

/** The reason why no agent of a release may start when `minVersion` is the oldest permitted version; null if it may. */
export function refusalOf(release: string, minVersion: string): string | null {
  const version = openclawVersion(release)
  if (!isOlder(version, minVersion)) return null
  const ids = advisoriesOf(release).map(({ id }) => id)
  const why = ids.length === 0 ? '' : ` It has known vulnerabilities: ${ids.join(', ')}.`
  return `OpenClaw ${version} of the release ${release} is older than ${minVersion}, the oldest that this server starts.${why}`
}
