import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { expect, test } from 'vitest'
import { rows } from '../../bench/page.ts'

const root = join(import.meta.dirname, '..', '..')
const read = (file: string) => readFileSync(join(root, file), 'utf8')
const documents = ['.', 'docs'].flatMap((folder) =>
  readdirSync(join(root, folder))
    .filter((file) => file.endsWith('.md'))
    .map((file) => join(folder, file)),
)
const scripts = Object.keys(JSON.parse(read('package.json')).scripts)

/** The text outside of blocks of code. */
const prose = (file: string) => read(file).replace(/^```[\s\S]*?^```/gm, '')

const anchorOf = (heading: string) =>
  heading
    .toLowerCase()
    .replace(/[^\w\- ]/g, '')
    .replaceAll(' ', '-')

test.each(documents)('%s: every link leads somewhere', (file) => {
  for (const [, target = '', anchor] of prose(file).matchAll(/\]\(([^)#\s]*)(?:#([^)]+))?\)/g)) {
    if (/^[a-z]+:/.test(target)) continue
    const path = target === '' ? file : join(dirname(file), target)
    expect(existsSync(join(root, path)), `${target} is there`).toBe(true)
    if (anchor === undefined) continue
    const anchors = [...read(path).matchAll(/^#+ (.+)$/gm)].map(([, heading = '']) => anchorOf(heading))
    expect(anchors).toContain(anchor)
  }
})

test.each(documents)('%s: every npm script and every file that it names is there', (file) => {
  const text = read(file)
  expect(
    [...text.matchAll(/npm run ([\w:-]+)/g)].map(([, name]) => name).filter((name) => !scripts.includes(`${name}`)),
  ).toEqual([])
  const named = [...prose(file).matchAll(/`((?:src|test|docs|deploy|releases|bench|demo|migrations)\/[\w./-]+)`/g)]
  const missing = named.map(([, path = '']) => path).filter((path) => !existsSync(join(root, path)))
  expect(missing).toEqual([])
})

test.each(documents)('%s: every table has a head, and paragraphs are at most 120 columns wide', (file) => {
  const lines = prose(file).split('\n')
  const headless = lines.filter(
    (line, index) =>
      line.startsWith('|') && !lines[index - 1]?.startsWith('|') && !/^\|(-+\|)+$/.test(lines[index + 1] ?? ''),
  )
  expect(headless).toEqual([])
  const wide = lines.filter((line) => [...line].length > 120 && !line.startsWith('|'))
  expect(wide).toEqual([])
})

test('docs/performance.md has the rows that the bench prints', () => {
  const names = [...read('docs/performance.md').matchAll(/^\| ([^|]+?) \|/gm)].map(([, name]) => name)
  expect(names).toEqual(rows.map(({ name }) => name))
})
