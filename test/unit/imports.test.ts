import { execFile } from 'node:child_process'
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'

const root = join(import.meta.dirname, '../..')
const nouns = folders('src/api')

function folders(path: string): string[] {
  return readdirSync(join(root, path), { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map(({ name }) => name)
}

/**
 * What may be imported: each noun of the API by itself, `sandbox/driver.ts` apart from the drivers, every other layer
 * whole.
 */
const targets = [
  'main.ts',
  'app.ts',
  ...folders('src').filter((name) => name !== 'api'),
  ...nouns.map((noun) => `api/${noun}`),
  'sandbox/driver.ts',
]

/** The rows of the table in docs/architecture.md: what a layer is, and what it may know. */
function documentedRules(): Map<string, string[]> {
  const text = readFileSync(join(root, 'docs/architecture.md'), 'utf8')
  const rows = [...text.matchAll(/^\| `([a-z./-]+)` \|[^|]*\|(.*)\|$/gm)]
  return new Map(
    rows.map(([, layer = '', known = '']) => [
      layer.replace(/\/$/, ''),
      [...known.matchAll(/`([^`]+)`/g)].map(([, name = '']) => name.replace(/\/$/, '')),
    ]),
  )
}

const rules = documentedRules()
const files = readdirSync(join(root, 'src'), { recursive: true, encoding: 'utf8' }).filter((path) =>
  path.endsWith('.ts'),
)

/** The layer of a file, or its noun below `api/`. */
function layerOf(file: string): string {
  const [first = '', second = ''] = file.split('/')
  return first === 'api' ? `api/${second}` : first
}

/** The imports that the table allows a layer. */
function knownTo(layer: string): string[] {
  const own = layer.endsWith('.ts') ? [] : [layer]
  const noun = /^api\//.test(layer) ? (rules.get('api') ?? []) : []
  const known = [...own, ...noun, ...(rules.get(layer) ?? [])]
  return known.flatMap((name) => (name === 'api' ? nouns.map((one) => `api/${one}`) : [name]))
}

const isKnown = (layer: string, target: string) =>
  knownTo(layer).some((known) => known === target || target.startsWith(`${known}/`))

const planted = (layer: string, forms: 'one form' | 'every form') =>
  targets.flatMap((target) => {
    const path = `#${target.endsWith('.ts') ? target : `${target}/planted.ts`}`
    const statements = [
      `import '${path}'`,
      ...(forms === 'every form'
        ? [
            `import type { A } from '${path}'`,
            `export { b } from '${path}'`,
            `export const later = () => import('${path}')`,
          ]
        : []),
    ]
    return statements.map((statement) => ({ target, statement, isAllowed: isKnown(layer, target) }))
  })

interface Report {
  diagnostics: { category: string; location: { path: string; start: { line: number } } }[]
}

let copy: string

beforeAll(() => {
  copy = mkdtempSync(join(tmpdir(), 'chowder-imports-'))
  cpSync(join(root, 'src'), join(copy, 'src'), { recursive: true })
  const settings = JSON.parse(readFileSync(join(root, 'biome.json'), 'utf8'))
  writeFileSync(join(copy, 'biome.json'), JSON.stringify({ ...settings, vcs: undefined, $schema: undefined }))
})
afterAll(() => rmSync(copy, { recursive: true, force: true }))

/** The lines, as `file:line`, whose imports the linter refuses. */
async function refused(): Promise<string[]> {
  const biome = join(root, 'node_modules/.bin/biome')
  const args = ['lint', '--only=style/noRestrictedImports', '--reporter=json', '--max-diagnostics=none', 'src']
  const ran = promisify(execFile)(biome, args, { cwd: copy, maxBuffer: 256 * 1024 * 1024 })
  const { stdout } = await ran.catch((error: { stdout: string }) => error)
  const { diagnostics }: Report = JSON.parse(stdout)
  return diagnostics.map(({ location }) => `${location.path}:${location.start.line}`)
}

describe('the linter keeps each layer to what docs/architecture.md lets it know', () => {
  test('the table names every layer', () => {
    const layers = ['main.ts', 'app.ts', ...folders('src')].filter((name) => name !== 'main.ts')
    expect(layers.filter((layer) => !rules.has(layer))).toEqual([])
  })

  test('a forbidden import is refused in every file, in every form, and an allowed one passes', {
    timeout: 120_000,
  }, async () => {
    const expected: string[] = []
    const seen = new Set<string>()
    for (const file of files) {
      const layer = layerOf(file)
      const imports = planted(layer, seen.has(layer) ? 'one form' : 'every form')
      seen.add(layer)
      const upwards = ["import '../planted.ts'", "import './../planted.ts'"].map((statement) => ({
        statement,
        isAllowed: false,
      }))
      const lines = [...imports, ...upwards]
      const source = readFileSync(join(root, 'src', file), 'utf8')
      const first = source.split('\n').length
      writeFileSync(join(copy, 'src', file), `${source}${lines.map(({ statement }) => `${statement}\n`).join('')}`)
      for (const [at, { isAllowed }] of lines.entries()) if (!isAllowed) expected.push(`src/${file}:${first + at}`)
    }
    expect(expected.length).toBeGreaterThan(files.length)
    expect((await refused()).sort()).toEqual(expected.sort())
  })
})

/** Where a file is: its folder, or itself for `main.ts` and `app.ts`. */
const folderOf = (file: string) => (file.includes('/') ? dirname(file) : file)

/** The folders that a folder's files import, for each folder. */
function folderImports(): Map<string, Set<string>> {
  const imports = new Map<string, Set<string>>()
  for (const file of files) {
    const source = readFileSync(join(root, 'src', file), 'utf8')
    const folder = folderOf(file)
    for (const [, path = ''] of source.matchAll(/\b(?:from|import)\s*\(?\s*'([#.][^']+)'/g)) {
      const target = path.startsWith('#') ? path.slice(1) : join(dirname(file), path)
      if (folderOf(target) === folder) continue
      imports.set(folder, (imports.get(folder) ?? new Set()).add(folderOf(target)))
    }
  }
  return imports
}

/** A way through the folders that ends where it began, if there is one. */
function findCircle(imports: Map<string, Set<string>>): string[] | null {
  const isDone = new Set<string>()
  function walk(folder: string, path: readonly string[]): string[] | null {
    if (path.includes(folder)) return [...path.slice(path.indexOf(folder)), folder]
    if (isDone.has(folder)) return null
    for (const next of imports.get(folder) ?? []) {
      const circle = walk(next, [...path, folder])
      if (circle) return circle
    }
    isDone.add(folder)
    return null
  }
  for (const folder of imports.keys()) {
    const circle = walk(folder, [])
    if (circle) return circle
  }
  return null
}

test('no folders import each other in a circle', () => {
  expect(findCircle(folderImports())).toBeNull()
  const turned = new Map([...folderImports(), ['platform', new Set(['lifecycle'])]])
  expect(findCircle(turned)).not.toBeNull()
})
