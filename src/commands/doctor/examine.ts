import { setTimeout as sleep } from 'node:timers/promises'
import { runAs } from '#history/actor.ts'
import { expiredAnswers, impossibleAnswers } from './answers.ts'
import { type Check, type DoctorDeps, type Finding, inWords } from './finding.ts'
import { brokenChains, missingBeginnings, recordingTriggers } from './history.ts'
import { miscounted } from './limits.ts'
import { queueAnswers } from './queue.ts'
import { failingEnds, impossibleRows, impossibleTimes, untakenRows } from './rows.ts'
import { orphanProcesses, rowsAgainstSandboxes, sandboxesAgainstRows } from './sandboxes.ts'
import { sealedColumns, secretKey } from './secrets.ts'

/** Leases first: what holds a row for ever would keep the other repairs from it. */
const allChecks: readonly Check[] = [
  impossibleTimes,
  impossibleRows,
  untakenRows,
  failingEnds,
  sandboxesAgainstRows,
  rowsAgainstSandboxes,
  orphanProcesses,
  miscounted,
  expiredAnswers,
  impossibleAnswers,
  recordingTriggers,
  brokenChains,
  missingBeginnings,
  secretKey,
  sealedColumns,
  queueAnswers,
]

/** Longer than a worker needs to see drift, or to renew a lease: what was a change under way is over by then. */
const secondLookAfterMs = 12_000
const checkTimeoutMs = 10 * 60_000
/** What is not listed of one check is told by its last line; more would be read by nobody. */
const maxFindings = 500
/** What workers get to work off what a repair made due. */
const repairTimeoutMs = 30_000
const betweenLooksMs = 1000

export interface Patience {
  secondLookAfterMs?: number
  repairTimeoutMs?: number
}

const sameAs = ({ check, what, seen }: Finding) => [check, what, seen ?? ''].join('\n')

async function findingsOf(check: Check, deps: DoctorDeps): Promise<Finding[]> {
  const findings: Finding[] = []
  for await (const finding of check(deps, AbortSignal.timeout(checkTimeoutMs))) {
    findings.push(finding)
    if (findings.length < maxFindings) continue
    const { check: name } = finding
    const what = `There may be more like the last ${maxFindings}.`
    return [...findings, { check: name, what, whatToDo: 'Run it again once these are repaired.' }]
  }
  return findings
}

/**
 * Looks at everything, and at what it found a second time after a while: on a live system all is changing, and only what
 * stays wrong is. Throws when it could not look: a platform or a queue that is away is a finding, a database is not.
 */
export async function examine(deps: DoctorDeps, patience: Patience = {}): Promise<Finding[]> {
  const suspected: { check: Check; known: Set<string> }[] = []
  for (const check of allChecks) {
    const found = await findingsOf(check, deps)
    if (found.length > 0) suspected.push({ check, known: new Set(found.map(sameAs)) })
  }
  if (suspected.length === 0) return []
  await sleep(patience.secondLookAfterMs ?? secondLookAfterMs)
  const lasting: Finding[] = []
  for (const { check, known } of suspected) {
    lasting.push(...(await findingsOf(check, deps)).filter((finding) => known.has(sameAs(finding))))
  }
  return lasting
}

/**
 * Repairs what can be repaired, on behalf of the operator, and says each in a line. Then gives workers time to work off
 * what was made due, and answers what is left.
 */
export async function repair(
  deps: DoctorDeps,
  findings: readonly Finding[],
  say: (line: string) => void,
  patience: Patience = {},
): Promise<Finding[]> {
  for (const { what, fix } of findings) {
    if (!fix) continue
    try {
      const done = await runAs({ actor: { type: 'operator' } }, fix)
      say(done === null ? `left alone, it is in work or has changed: ${what}` : `repaired: ${done}`)
    } catch (error) {
      say(`could not be repaired: ${what} ${inWords(error)}`)
    }
  }
  const deadline = performance.now() + (patience.repairTimeoutMs ?? repairTimeoutMs)
  for (;;) {
    const left = await examine(deps, { secondLookAfterMs: betweenLooksMs, ...patience })
    if (left.length === 0 || performance.now() > deadline) return left
    if (!left.some(({ fix }) => fix)) return left
  }
}
