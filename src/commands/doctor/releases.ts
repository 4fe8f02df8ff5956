import { and, inArray } from 'drizzle-orm'
import { instances } from '#database/schema.ts'
import { isNotTerminated } from '#instances/status.ts'
import { advisoriesOf, firstGoodVersion, refusalOf } from '#openclaw/release/advisories.ts'
import { knownReleases, openclawVersion } from '#openclaw/releases.ts'
import { type Check, maxFindings } from './finding.ts'

/** A24: no agent has a release that may not be started, or one with a known vulnerability. */
export const vulnerableReleases: Check = async function* (deps) {
  const minVersion = deps.config.OPENCLAW_MIN_VERSION ?? firstGoodVersion
  const old = knownReleases().filter(
    (release) => refusalOf(release, minVersion) !== null || advisoriesOf(release).length > 0,
  )
  if (old.length === 0) return
  const found = await deps.db
    .select({ id: instances.id, release: instances.openclawVersion })
    .from(instances)
    .where(and(isNotTerminated, inArray(instances.openclawVersion, old)))
    .limit(maxFindings)
  for (const { id, release } of found) {
    const ids = advisoriesOf(release).map((advisory) => advisory.id)
    const known = ids.length === 0 ? '' : `, which has known vulnerabilities: ${ids.join(', ')}`
    const isRefused = refusalOf(release, minVersion) !== null
    yield {
      area: 'releases',
      what: `The instance ${id} has OpenClaw ${openclawVersion(release)}${known}.`,
      whatToDo:
        'Create another instance with a newer release, and delete this one. ' +
        (isRefused
          ? `It is not started again while OPENCLAW_MIN_VERSION is ${minVersion}.`
          : `OPENCLAW_MIN_VERSION=${minVersion} lets it start.`),
    }
  }
}
