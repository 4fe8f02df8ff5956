import { readFileSync } from 'node:fs'
import { getTableColumns } from 'drizzle-orm'
import { describe, expect, test } from 'vitest'
import { instances } from '#database/schema.ts'
import { plans } from '#lifecycle/attempt/plans.ts'

const document = readFileSync(new URL('../../docs/architecture.md', import.meta.url), 'utf8')

/** The names in backticks in each cell of the rows below a table's head. */
function table(head: string): string[][][] {
  const [, rest = ''] = document.split(`${head}\n`)
  const lines = rest.split('\n').slice(1)
  return lines
    .slice(0, lines.indexOf(''))
    .map((line) => line.split('|').map((cell) => [...cell.matchAll(/`([^`]+)`/g)].map(([, name = '']) => name)))
}

test('docs/reliability.md names the time limit of each step', () => {
  const text = readFileSync(new URL('../../docs/reliability.md', import.meta.url), 'utf8')
  const limited = [...text.matchAll(/^\| steps? ([^|]+)/gm)].flatMap(([, names = '']) => names.match(/\w+/g) ?? [])
  const steps = Object.values(plans).flatMap((plan) => plan.map(({ step }) => step.name))
  expect(limited.sort()).toEqual(steps.sort())
})

describe('docs/architecture.md', () => {
  test('lists the steps of each desired state in their order', () => {
    const listed = table('| Desired | Steps |').map(([, desired, steps]) => [desired?.[0], steps])
    const expected = Object.entries(plans).map(([desired, plan]) => [desired, plan.map(({ step }) => step.name)])
    expect(listed).toEqual(expected)
  })

  test('describes columns that instances have', () => {
    const described = table('| Column | Written by | Means |').flatMap(([, columns = []]) => columns)
    const columns = Object.keys(getTableColumns(instances)).map((name) =>
      name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`),
    )
    expect(described.length).toBeGreaterThan(10)
    expect(described.filter((name) => !columns.includes(name))).toEqual([])
  })
})
