import { faultsOfTrust, type Violation } from './checker.ts'

/** The actions and violations of a run of the nemesis. */
export interface Report {
  seed: number
  queue: string
  seconds: number
  /** How often each kind of fault was injected. */
  faults: Record<string, number>
  /** How often each kind of thing was asked for. */
  operations: Record<string, number>
  /** Requests by the status of their answer; `none` is no answer. */
  answers: Record<string, number>
  instances: number
  violations: Violation[]
  /**
   * By kind of fault, in ms: from its end, or from the kill, until all work that was due then was done; while the next
   * faults strike, and when none does.
   */
  recovery: Record<'together' | 'alone', Record<string, number[]>>
}

const quantile = (sorted: readonly number[], share: number): number =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN

const inSeconds = (ms: number): string => (Number.isNaN(ms) ? '-' : `${(ms / 1000).toFixed(1)} s`)

/** Adds up what several runs counted. */
const summed = (reports: readonly Report[], of: (report: Report) => Record<string, number>): [string, number][] => {
  const sums = new Map<string, number>()
  for (const report of reports)
    for (const [name, count] of Object.entries(of(report))) sums.set(name, (sums.get(name) ?? 0) + count)
  return [...sums].sort(([a], [b]) => (a < b ? -1 : 1))
}

/** The table that a run ends with, of all its reports together. */
export function tableOf(reports: readonly Report[]): string {
  const lines: string[] = []
  for (const { queue, seed, seconds } of reports)
    lines.push(`queue in ${queue}, ${Math.round(seconds)} s, --seed ${seed}`)
  const columns = ['n', 'p50', 'p95', 'max'].map((name) => name.padStart(9)).join('')
  lines.push('', `${' '.repeat(38)}recovered, next faults upon it         recovered, alone`)
  lines.push(`${'fault'.padEnd(30)}injected${columns}${columns}`)
  for (const [kind, count] of summed(reports, ({ faults }) => faults)) {
    const figures = (['together', 'alone'] as const).flatMap((when) => {
      const times = reports.flatMap(({ recovery }) => recovery[when][kind] ?? []).sort((a, b) => a - b)
      return [String(times.length), ...[0.5, 0.95, 1].map((share) => inSeconds(quantile(times, share)))]
    })
    lines.push(`${kind.padEnd(30)}${String(count).padStart(8)}${figures.map((one) => one.padStart(9)).join('')}`)
  }
  const operations = summed(reports, (report) => report.operations)
  const total = operations.reduce((sum, [, count]) => sum + count, 0)
  const instances = reports.reduce((sum, report) => sum + report.instances, 0)
  lines.push('', `operations issued  ${total} (${operations.map(([kind, count]) => `${kind} ${count}`).join(', ')})`)
  const answers = summed(reports, (report) => report.answers)
  lines.push(`answers            ${answers.map(([status, count]) => `${status} ${count}`).join(', ')}`)
  lines.push(`instances          ${instances}`, '')
  const violations = reports.flatMap((report) => report.violations)
  for (const what of faultsOfTrust) {
    lines.push(`${what.padEnd(26)} ${violations.filter((violation) => violation.what === what).length}`)
  }
  const most = 50
  for (const { what, instanceId, why } of violations.slice(0, most)) lines.push(`  ${what}: ${instanceId ?? ''} ${why}`)
  if (violations.length > most) lines.push(`  and ${violations.length - most} more`)
  return lines.join('\n')
}
