import { inArray, sql } from 'drizzle-orm'
import { instances } from '#database/schema.ts'
import { advisoriesOf, firstGoodVersion, refusalOf } from '#openclaw/advisories.ts'
import { knownReleases, openclawVersion } from '#openclaw/releases.ts'
import type { Check } from './finding.ts'
import { searchInstances } from './instances.ts'

/** A24: no agent has a release that may not be started, or one with a known vulnerability. */
export const vulnerableReleases: Check = async function* (deps) {
  const minVersion = deps.config.OPENCLAW_MIN_VERSION ?? firstGoodVersion
  const old = knownReleases().filter(
    (release) => refusalOf(release, minVersion) !== null || advisoriesOf(release).length > 0,
  )
  if (old.length === 0) return
  const condition = sql`desired_state <> 'terminated' AND ${inArray(instances.openclawVersion, old)}`
  const columns = sql`, openclaw_version`
  type Release = { openclaw_version: string }
  const found = searchInstances<Release>(deps, 'vulnerableReleases', condition, columns)
  for await (const { id, openclaw_version } of found) {
    const ids = advisoriesOf(openclaw_version).map((advisory) => advisory.id)
    const known = ids.length === 0 ? '' : `, which has known vulnerabilities: ${ids.join(', ')}`
    const isRefused = refusalOf(openclaw_version, minVersion) !== null
    yield {
      area: 'releases',
      what: `The instance ${id} has OpenClaw ${openclawVersion(openclaw_version)}${known}.`,
      whatToDo:
        'Create another instance with a newer release, and delete this one. ' +
        (isRefused
          ? `It is not started again while OPENCLAW_MIN_VERSION is ${minVersion}.`
          : `OPENCLAW_MIN_VERSION=${minVersion} lets it start.`),
    }
  }
}
