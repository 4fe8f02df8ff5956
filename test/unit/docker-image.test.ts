import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { programFiles } from '#sandbox/docker/image.ts'

const folder = join(import.meta.dirname, '../../src/sandbox')
const imported = /^import (?!type )[^']*'(?:#sandbox\/([^']+)|(\.[^']+))'$/gm

test('the image has all that its programs import', async () => {
  for (const file of programFiles) {
    const source = await readFile(join(folder, file), 'utf8')
    for (const [, ours, beside = ''] of source.matchAll(imported))
      expect(programFiles).toContain(ours ?? join(file, '..', beside))
  }
})
