import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { describe, expect, test } from 'vitest'

const root = join(import.meta.dirname, '../..')
const src = join(root, 'src')

type Sources = ReadonlyMap<string, string>

/** The files of src by their path. */
const sources: Sources = new Map(
  readdirSync(src, { recursive: true, encoding: 'utf8' })
    .filter((path) => /\.(ts|mjs)$/.test(path))
    .map((path) => [path, readFileSync(join(src, path), 'utf8')]),
)

/** The order of storeys and its exceptions, from the code block of docs/architecture.md. */
function readOrder() {
  const document = readFileSync(join(root, 'docs/architecture.md'), 'utf8')
  const [order = '', exceptions = ''] = document.split('## Storeys')[1]?.split('```')[1]?.trim().split('\n\n') ?? []
  const storeys = order.split('>').map((names) => names.trim().split(/\s+/))
  return {
    height: new Map(storeys.flatMap((names, at) => names.map((name) => [name, -at]))),
    exceptions: [...exceptions.matchAll(/^(\S+) also knows ([^\s:]+): \S/gm)].map(([, who = '', what = '']) => ({
      who,
      what,
    })),
  }
}

const { height, exceptions } = readOrder()

const storeyOf = (path: string) => path.split('/')[0]?.replace(/\.(ts|mjs)$/, '') ?? ''
const nounOf = (path: string) => (path.startsWith('api/') ? path.split('/')[1] : undefined)
/** The folder of a file; itself for a file directly in src. */
const folderOf = (path: string) => (path.includes('/') ? dirname(path) : path)

/** The imports of a file, also of types and those that are called: how each is written, and the path of its file. */
const importsOf = (path: string, source: string) =>
  [...source.matchAll(/\b(?:from|import)\b\s*\(?\s*(['"`])([#.][^'"`]*)\1/g)].map(([, , written = '']) => ({
    written,
    target: written.startsWith('#') ? written.slice(1) : join(dirname(path), written),
  }))

function isAllowed(path: string, written: string, target: string): boolean {
  if (written.includes('../')) return false
  const [storey, known] = [storeyOf(path), storeyOf(target)]
  if (exceptions.some(({ who, what }) => path.startsWith(`${who}/`) && `${target}/`.startsWith(`${what}/`))) return true
  if (storey === known) return nounOf(path) === nounOf(target)
  const [own, other] = [height.get(storey) ?? Number.NaN, height.get(known) ?? Number.NaN]
  const isDriver = known === 'sandbox' && target !== 'sandbox/driver.ts'
  return own > other && !(isDriver && own < (height.get('composition') ?? 0))
}

/** A way that ends where it began, if there is one. */
function findCircle(arrows: ReadonlyMap<string, ReadonlySet<string>>): string[] {
  const done = new Set<string>()
  function walk(at: string, way: readonly string[]): string[] {
    if (way.includes(at)) return [...way.slice(way.indexOf(at)), at]
    if (done.has(at)) return []
    for (const next of arrows.get(at) ?? []) {
      const circle = walk(next, [...way, at])
      if (circle.length > 0) return circle
    }
    done.add(at)
    return []
  }
  return [...arrows.keys()].map((at) => walk(at, [])).find((circle) => circle.length > 0) ?? []
}

/** The imports that the order forbids, and a circle of files and of folders. */
function faultsOf(files: Sources): string[] {
  const [ofFiles, ofFolders] = [new Map<string, Set<string>>(), new Map<string, Set<string>>()]
  const forbidden: string[] = []
  for (const [path, source] of files) {
    for (const { written, target } of importsOf(path, source)) {
      if (!isAllowed(path, written, target)) forbidden.push(`${path} imports ${written}`)
      ofFiles.set(path, (ofFiles.get(path) ?? new Set()).add(target))
      const [from, to] = [folderOf(path), folderOf(target)]
      if (from !== to) ofFolders.set(from, (ofFolders.get(from) ?? new Set()).add(to))
    }
  }
  return [...forbidden, ...[ofFiles, ofFolders].map((arrows) => findCircle(arrows).join(' > ')).filter(Boolean)]
}

describe('the imports of src keep to the order of docs/architecture.md', () => {
  test('the order names each storey once', () => {
    expect([...height.keys()].sort()).toEqual([...new Set([...sources.keys()].map(storeyOf))].sort())
  })

  test('no import is forbidden, and there is no circle', () => {
    expect(faultsOf(sources)).toEqual([])
  })

  test.each([
    ['platform/ids.ts', "import { a } from '#settings/env.ts'"],
    ['lifecycle/attempt/step.ts', "import type { A } from '#relay/call.ts'"],
    ['history/record.ts', "export { a } from '#http/auth.ts'"],
    ['budgets/check.ts', "export const a = () => import('#api/keys/store.ts')"],
    ['openclaw/config/path.ts', "type A = import('#http/auth.ts').Caller"],
    ['api/keys/store.ts', "import { a } from '#api/usage/read.ts'"],
    ['api/organization/store.ts', "import { a } from '#api/keys/callers.ts'"],
    ['instances/find.ts', "import { a } from '#sandbox/local/driver.ts'"],
    ['relay/usage/meter.ts', "import { a } from '../call.ts'"],
    ['http/errors.ts', "import { a } from '#unknown/a.ts'"],
  ])('%s may not: %s', (path, line) => {
    const [first = ''] = faultsOf(new Map([...sources, [path, `${sources.get(path)}\n${line}`]]))
    expect(first).toBe(`${path} imports ${/'(.+)'/.exec(line)?.[1]}`)
  })

  test('a circle of types is found, of files and of folders', () => {
    const planted = new Map([
      ['relay/call.ts', "import type { A } from './pace.ts'\nimport { b } from '#relay/usage/cost.ts'"],
      ['relay/pace.ts', "import type { A } from './call.ts'"],
      ['relay/usage/cost.ts', "import type { A } from '#relay/target.ts'"],
    ])
    expect(faultsOf(planted)).toEqual(['relay/call.ts > relay/pace.ts > relay/call.ts', 'relay > relay/usage > relay'])
  })
})
