import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { releaseImage } from '#openclaw/release-image.ts'
import { programFiles } from '#sandbox/docker/image.ts'

const root = join(import.meta.dirname, '../..')
const statement = /^(?:import|export) (?!type )[^']*'(?:#([^']+)|(\.[^']+))'$/gm

/** The files of this project that a file imports when it runs, as paths below the root. */
async function importsOf(file: string): Promise<string[]> {
  const source = await readFile(join(root, file), 'utf8')
  return [...source.matchAll(statement)].map(([, ours, beside = '']) =>
    ours ? `src/${ours}` : join(file, '..', beside),
  )
}

test.each([
  ['the programs of an image', programFiles.map((name) => `src/sandbox/${name}`)],
  ['the install of a release in an image', releaseImage('v1', 10_001).files.filter((name) => name.startsWith('src/'))],
])('%s: no file imports one that the image does not have', async (_what, files) => {
  for (const file of files) for (const imported of await importsOf(file)) expect(files).toContain(imported)
})

test('no program of an image is empty', async () => {
  for (const name of programFiles)
    expect([name, (await readFile(join(root, 'src/sandbox', name), 'utf8')).trim()]).not.toEqual([name, ''])
})
