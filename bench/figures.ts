import { present } from '../test/support/present.ts'

/** One thing measured. */
export interface Fact {
  name: string
  unit: string
  /** The median, where `p95` is there. */
  chowder: number
  p95?: number
}

/** One thing measured, beside the limit that was measured in the same minutes. */
export interface Figure extends Fact {
  limit: number
  /** The median of each round's own ratio: a machine that is busy for a while is so for both sides. */
  ratio: number
  bar: { atLeast: number } | { atMost: number }
}

export const fact = (name: string, chowder: number, unit: string): Fact => ({ name, chowder, unit })

/** Returns the median and the p95 of many measurements of one thing. */
export function spread(name: string, values: number[], unit: string): Fact {
  const sorted = [...values].sort((a, b) => a - b)
  const p95 = present(sorted[Math.ceil(sorted.length * 0.95) - 1])
  return { name, unit, chowder: median(values), p95 }
}

/** The measurements of one round on both sides. */
export interface Round {
  chowder: number
  limit: number
}

export const median = (values: number[]): number => {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = Math.floor(sorted.length / 2)
  return sorted.length % 2 === 1 ? present(sorted[middle]) : (present(sorted[middle - 1]) + present(sorted[middle])) / 2
}

/** The figure that the medians of some rounds make. */
export const figure = (name: string, unit: string, bar: Figure['bar'], rounds: Round[]): Figure => ({
  name,
  unit,
  chowder: median(rounds.map(({ chowder }) => chowder)),
  limit: median(rounds.map(({ limit }) => limit)),
  ratio: median(rounds.map(({ chowder, limit }) => chowder / limit)),
  bar,
})

/** Null without a bar. */
export function isHeld(one: Fact | Figure): boolean | null {
  if (!('bar' in one)) return null
  const { ratio, bar } = one
  return 'atLeast' in bar ? ratio >= bar.atLeast : ratio <= bar.atMost
}

export const written = (value: number): string =>
  value === 0
    ? '0'
    : value >= 100
      ? Math.round(value).toLocaleString('en')
      : value >= 10
        ? value.toFixed(1)
        : value.toFixed(2)

/** A value with its unit, and its p95 where there is one. */
export const value = ({ chowder, unit, p95 }: Fact): string =>
  `${written(chowder)} ${unit}${p95 === undefined ? '' : ` (p95 ${written(p95)})`}`

function cells(one: Fact | Figure): string[] {
  const own = [one.name, value(one)]
  if (!('bar' in one)) return [...own, '', '', '', '']
  return [
    ...own,
    `${written(one.limit)} ${one.unit}`,
    one.ratio.toFixed(2),
    'atLeast' in one.bar ? `≥ ${one.bar.atLeast.toFixed(2)}` : `≤ ${one.bar.atMost.toFixed(2)}`,
    isHeld(one) ? 'held' : 'MISSED',
  ]
}

/** The figures as a table for reading. */
export function table(figures: (Fact | Figure)[]): string {
  const rows = figures.map(cells)
  const all = [['', 'Chowder', 'limit', 'ratio', 'bar', ''], ...rows]
  const widths = present(all[0]).map((_, column) => Math.max(...all.map((row) => present(row[column]).length)))
  const line = (row: string[]) =>
    row.map((cell, column) =>
      column === 0 || column === 5 ? cell.padEnd(present(widths[column])) : cell.padStart(present(widths[column])),
    )
  return all.map((row) => `  ${line(row).join('   ').trimEnd()}`).join('\n')
}
