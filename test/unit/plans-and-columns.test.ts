import { readFileSync } from 'node:fs'
import { getTableColumns } from 'drizzle-orm'
import { expect, test } from 'vitest'
import { instances } from '#database/schema.ts'
import { plans } from '#lifecycle/attempt/plans.ts'

const read = (path: string) => readFileSync(new URL(`../../${path}`, import.meta.url), 'utf8')

/** The names in backticks in each cell of the rows below a table's head. */
function table(path: string, head: string): string[][][] {
  const [, rest = ''] = read(path).split(`${head}\n`)
  const lines = rest.split('\n').slice(1)
  return lines
    .slice(0, lines.indexOf(''))
    .map((line) => line.split('|').map((cell) => [...cell.matchAll(/`([^`]+)`/g)].map(([, name = '']) => name)))
}

test('docs/reliability.md names the time limit of each step', () => {
  const limited = [...read('docs/reliability.md').matchAll(/^\| steps? ([^|]+)/gm)].flatMap(
    ([, names = '']) => names.match(/\w+/g) ?? [],
  )
  const steps = Object.values(plans).flatMap((plan) => plan.map(({ step }) => step.name))
  expect(limited.sort()).toEqual(steps.sort())
})

test('src/lifecycle/README.md lists the steps of each desired state in their order', () => {
  const listed = table('src/lifecycle/README.md', '| Desired | Steps |').map(([, desired, steps]) => [
    desired?.[0],
    steps,
  ])
  const expected = Object.entries(plans).map(([desired, plan]) => [desired, plan.map(({ step }) => step.name)])
  expect(listed).toEqual(expected)
})

test('src/instances/README.md describes columns that instances have', () => {
  const described = table('src/instances/README.md', '| Column | Written by | Means |').flatMap(
    ([, columns = []]) => columns,
  )
  const columns = Object.keys(getTableColumns(instances)).map((name) =>
    name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`),
  )
  expect(described.length).toBeGreaterThan(10)
  expect(described.filter((name) => !columns.includes(name))).toEqual([])
})
