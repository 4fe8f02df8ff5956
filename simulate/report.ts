import { type PartOfDay, partsOfDay } from './day.ts'
import type { Fleet } from './fleet.ts'
import type { Asked } from './people.ts'
import type { Sample } from './samples.ts'

const quantile = (values: number[], share: number): number => {
  const sorted = values.toSorted((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN
}

const written = (value: number, unit: string) =>
  Number.isFinite(value) ? `${value >= 100 ? value.toFixed(0) : Number(value.toPrecision(2))}${unit}` : '-'

const most = (samples: Sample[], of: (sample: Sample) => number) => Math.max(...samples.map(of))
const mean = (samples: Sample[], of: (sample: Sample) => number) =>
  samples.reduce((sum, sample) => sum + of(sample), 0) / samples.length

function column(samples: Sample[], asked: Asked[]): Record<string, string> {
  const of = (kind: Asked['kind']) => asked.filter((one) => one.kind === kind)
  const time = (kind: Asked['kind'], share: number, unit: 's' | 'ms') => {
    const done = of(kind).filter(({ failure }) => failure === null)
    return written(
      quantile(
        done.map(({ ms }) => (unit === 's' ? ms / 1000 : ms)),
        share,
      ),
      ` ${unit}`,
    )
  }
  const failed = (kind: Asked['kind']) => {
    const all = of(kind)
    return `${all.filter(({ failure }) => failure !== null).length} of ${all.length}`
  }
  const average = (value: (sample: Sample) => number, unit = '') => written(mean(samples, value), unit)
  const largest = (value: (sample: Sample) => number, unit = '') => written(most(samples, value), unit)
  const dueAges = samples.map(({ dueAge }) => dueAge)
  return {
    'instances that run': average(({ running }) => running),
    'create to running, p50': time('create', 0.5, 's'),
    'create to running, p99': time('create', 0.99, 's'),
    'creates that failed': failed('create'),
    'a turn, p50': time('turn', 0.5, 'ms'),
    'a turn, p99': time('turn', 0.99, 'ms'),
    'turns that failed': failed('turn'),
    'deletes that failed': failed('delete'),
    'due rows, most': largest(({ due }) => due),
    'due age, p99': written(quantile(dueAges, 0.99), ' s'),
    'cores of the database': average(({ database }) => database),
    transactions: average(({ transactionsPerSecond }) => transactionsPerSecond, '/s'),
    'cores of all workers': average(({ workers }) => workers),
    'cores of the API': average(({ api }) => api),
    'largest worker': largest(({ workerMb }) => workerMb, ' MB'),
    API: largest(({ apiMb }) => apiMb, ' MB'),
  }
}

/** A table in Markdown: a column for each part of the day that has passed, and one for all of it. */
export function tableOf(samples: Sample[], asked: Asked[]): string {
  const inPart = <T extends { part: PartOfDay }>(all: T[], part: PartOfDay) => all.filter((one) => one.part === part)
  const columns = [
    ...partsOfDay.map((part) => [part, inPart(samples, part), inPart(asked, part)] as const),
    ['all', samples, asked] as const,
  ].filter(([, taken]) => taken.length > 0)
  const cells = columns.map(([name, taken, of]) => ({ name, rows: column(taken, of) }))
  const lines = [`| | ${cells.map(({ name }) => name).join(' | ')} |`, `|---|${'---|'.repeat(cells.length)}`]
  for (const name of Object.keys(cells[0]?.rows ?? {}))
    lines.push(`| ${name} | ${cells.map(({ rows }) => rows[name]).join(' | ')} |`)
  return lines.join('\n')
}

/** What became of instances meanwhile, as their events tell it, the most frequent first. */
export async function eventsOf({ pool }: Fleet): Promise<string[]> {
  const { rows } = await pool.query<{ count: number; type: string; reason: string | null }>(
    'SELECT count(*)::int AS count, type, reason FROM events GROUP BY type, reason ORDER BY 1 DESC LIMIT 12',
  )
  return rows.map(
    ({ count, type, reason }) => `${count} × ${type}${reason === null ? '' : `: ${reason.slice(0, 160)}`}`,
  )
}

/** Why things were not done, the most frequent first. */
export function failuresOf(asked: Asked[]): string[] {
  const counts = new Map<string, number>()
  for (const { kind, failure } of asked) {
    if (failure === null) continue
    const reason = `${kind}: ${failure.replaceAll(/[0-9a-f-]{36}|:\d+/g, '…').slice(0, 200)}`
    counts.set(reason, (counts.get(reason) ?? 0) + 1)
  }
  return [...counts].sort(([, a], [, b]) => b - a).map(([reason, count]) => `${count} × ${reason}`)
}
