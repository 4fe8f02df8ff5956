import type { Db } from '#database/client.ts'
import { storeValue } from '#database/installation.ts'
import { doctorReportName } from '#lifecycle/queue/backlog.ts'
import { printable } from '#platform/command-line.ts'
import type { Config } from '#settings/config.ts'
import { describeAccess } from './access.ts'
import { type Area, areas, type Finding } from './finding.ts'

const names = Object.keys(areas) as Area[]
const width = Math.max(...names.map((name) => name.length))

/** If the schema check fails, skips the others: the other tables may be missing. */
const wasLookedAt = (area: Area, findings: readonly Finding[]) =>
  area === 'schema' || !findings.some((finding) => finding.area === 'schema')

/** The expected state of each area. */
const expectations = (config: Config): Record<Area, string> => ({
  ...areas,
  access: `${areas.access}: ${describeAccess(config)}`,
})

/** The report for people: each area, whether it was checked, and its findings. */
export function describeFindings(config: Config, findings: readonly Finding[]): string {
  const expected = expectations(config)
  const lines = names.flatMap((name) => {
    const own = findings.filter(({ area }) => area === name)
    const indent = ' '.repeat(width + 5)
    const mark = own.length > 0 ? '✗' : wasLookedAt(name, findings) ? '✓' : '–'
    return [
      `${mark}  ${name.padEnd(width)}  ${expected[name]}`,
      ...own.flatMap(({ what, whatToDo }) => [`${indent}- ${what}`, `${indent}  ${whatToDo}`]),
    ]
  })
  return printable([...lines, '', conclusion(findings)].join('\n'))
}

const conclusion = ({ length }: readonly Finding[]) =>
  length === 0 ? 'Everything is as it must be.' : `${length} finding${length === 1 ? '' : 's'}.`

/** The report for programs. */
export const findingsAsData = (config: Config, findings: readonly Finding[]) => ({
  healthy: findings.length === 0,
  looked_at: names
    .filter((area) => wasLookedAt(area, findings))
    .map((area) => ({
      area,
      expected: expectations(config)[area],
      findings: findings.filter((finding) => finding.area === area).length,
    })),
  findings: findings.map(({ area, what, whatToDo }) => ({ area, what, what_to_do: whatToDo })),
})

/** Stores the numbers of findings for the workers' metrics. */
export async function storeFindings(db: Db, findings: readonly Finding[]): Promise<void> {
  const counts = Object.fromEntries(names.map((name) => [name, findings.filter(({ area }) => area === name).length]))
  await storeValue(db, doctorReportName, JSON.stringify({ at: Date.now() / 1000, findings: counts }))
}
