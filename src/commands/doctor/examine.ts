import { exposedAgents, undecidedHosts, unreadableSignupToken } from './access.ts'
import { failedChannels, leftOutChannels, refusedKeys } from './agents.ts'
import { hostHasRoom } from './disk.ts'
import { type Area, type Check, type DoctorDeps, type Finding, maxFindings } from './finding.ts'
import { queueAnswers } from './queue.ts'
import { relayAnswers } from './relay.ts'
import { vulnerableReleases } from './releases.ts'
import { failingEnds, untakenRows } from './rows.ts'
import { orphanProcesses, orphanSandboxes } from './sandboxes.ts'
import { sealedColumns, secretKey } from './secrets.ts'

const allChecks: readonly (readonly [Area, readonly Check[]])[] = [
  ['instances', [untakenRows, failingEnds]],
  ['agents', [refusedKeys, failedChannels, leftOutChannels]],
  ['sandboxes', [orphanSandboxes, orphanProcesses]],
  ['releases', [vulnerableReleases]],
  ['secrets', [secretKey, sealedColumns]],
  ['access', [undecidedHosts, exposedAgents, unreadableSignupToken]],
  ['relay', [relayAnswers]],
  ['disk', [hostHasRoom]],
  ['queue', [queueAnswers]],
]

const checkTimeoutMs = 10 * 60_000

async function findingsOf(check: Check, deps: DoctorDeps): Promise<Finding[]> {
  const findings: Finding[] = []
  for await (const finding of check(deps, AbortSignal.timeout(checkTimeoutMs))) {
    findings.push(finding)
    if (findings.length < maxFindings) continue
    const what = `There may be more than these ${maxFindings} findings of this check.`
    return [...findings, { area: finding.area, what, whatToDo: 'Run the doctor again after these are repaired.' }]
  }
  return findings
}

/**
 * Runs all checks, changes nothing and returns the findings. `report` receives each area before its checks. Throws when
 * the database cannot be read; a platform or a queue that cannot be reached is a finding.
 */
export async function examine(deps: DoctorDeps, report: (area: Area) => void = () => {}): Promise<Finding[]> {
  const findings: Finding[] = []
  for (const [area, checks] of allChecks) {
    report(area)
    for (const check of checks) findings.push(...(await findingsOf(check, deps)))
  }
  return findings
}
