import { setTimeout as sleep } from 'node:timers/promises'
import { runAs } from '#history/actor.ts'
import { exposedAgents, undecidedHosts, unreadableSignupToken } from './access.ts'
import { expiredAnswers, impossibleAnswers } from './answers.ts'
import { hostHasRoom } from './disk.ts'
import { type Area, type Check, type DoctorDeps, describeError, type Finding } from './finding.ts'
import { brokenChains, missingCreations, recordingTriggers } from './history.ts'
import { miscounted } from './limits.ts'
import { queueAnswers } from './queue.ts'
import { relayAnswers } from './relay.ts'
import { vulnerableReleases } from './releases.ts'
import { failingEnds, impossibleRows, impossibleTimes, untakenRows } from './rows.ts'
import { orphanProcesses, sandboxesAgainstRows } from './sandboxes.ts'
import { sealedColumns, secretKey } from './secrets.ts'

/** Leases first: a lease that never ends would keep other repairs from its row. */
const allChecks: readonly (readonly [Area, readonly Check[]])[] = [
  ['instances', [impossibleTimes, impossibleRows, untakenRows]],
  ['sandboxes', [failingEnds, sandboxesAgainstRows, orphanProcesses]],
  ['releases', [vulnerableReleases]],
  ['limits', [miscounted]],
  ['answers', [expiredAnswers, impossibleAnswers]],
  ['history', [recordingTriggers, brokenChains, missingCreations]],
  ['secrets', [secretKey, sealedColumns]],
  ['access', [undecidedHosts, exposedAgents, unreadableSignupToken]],
  ['relay', [relayAnswers]],
  ['disk', [hostHasRoom]],
  ['queue', [queueAnswers]],
]

/** Longer than a worker takes to detect drift or to renew a lease: a change under way is over by then. */
const secondLookAfterMs = 12_000
const checkTimeoutMs = 10 * 60_000
/** For each check. */
const maxFindings = 500
/** The time that workers get to work on the rows that a repair made due. */
const repairTimeoutMs = 30_000
const pauseMs = 1000

export interface DoctorOptions {
  secondLookAfterMs?: number
  repairTimeoutMs?: number
  /** Is told what the doctor is about to do, in words. */
  report?(doing: string): void
}

const keyOf = ({ area, what, version }: Finding) => [area, what, version ?? ''].join('\n')

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
 * Runs all checks, and after a pause once more those that found something: in a running installation a finding may be a
 * change under way. Returns the findings of both looks. Throws when the database cannot be read; a platform or a queue
 * that cannot be reached is a finding.
 */
export async function examine(deps: DoctorDeps, options: DoctorOptions = {}): Promise<Finding[]> {
  const { report = () => {} } = options
  const suspicious: { check: Check; keys: Set<string> }[] = []
  for (const [area, checks] of allChecks) {
    report(`looking at ${area}`)
    for (const check of checks) {
      const found = await findingsOf(check, deps)
      if (found.length > 0) suspicious.push({ check, keys: new Set(found.map(keyOf)) })
    }
  }
  if (suspicious.length === 0) return []
  report('looking again at what it found')
  await sleep(options.secondLookAfterMs ?? secondLookAfterMs)
  const lasting: Finding[] = []
  for (const { check, keys } of suspicious) {
    lasting.push(...(await findingsOf(check, deps)).filter((finding) => keys.has(keyOf(finding))))
  }
  return lasting
}

/**
 * Repairs the findings that can be repaired, in the name of the operator, and prints a line about each. Then waits for
 * workers to work on the rows that were made due. Returns the findings that are left.
 */
export async function repair(
  deps: DoctorDeps,
  findings: readonly Finding[],
  print: (line: string) => void,
  options: DoctorOptions = {},
): Promise<Finding[]> {
  for (const { what, fix } of findings) {
    if (!fix) continue
    try {
      const done = await runAs({ actor: { type: 'operator' } }, fix)
      print(done === null ? `not repaired, a worker holds it or it has changed: ${what}` : `repaired: ${done}`)
    } catch (error) {
      print(`could not be repaired: ${what} ${describeError(error)}`)
    }
  }
  const deadline = performance.now() + (options.repairTimeoutMs ?? repairTimeoutMs)
  for (;;) {
    const left = await examine(deps, { secondLookAfterMs: pauseMs, ...options })
    if (performance.now() > deadline || !left.some(({ fix }) => fix)) return left
  }
}
