import { expect, test } from 'vitest'
import { codeBlocksOf } from '../support/code-blocks.ts'

const commandsOf = (document: string) =>
  codeBlocksOf(document)
    .flatMap(({ text }) => text.split('\n'))
    .map((line) => line.replace(/\s+#.*$/, '').trim())
    .filter((line) => line !== '' && !line.startsWith('#'))

/** The journey runs the blocks of the quickstart. */
test('the README shows only commands of the quickstart, and the demo', () => {
  const known = new Set([...commandsOf('docs/quickstart.md'), 'npm run demo'])
  const shown = commandsOf('README.md')
  expect(shown.length).toBeGreaterThan(10)
  expect(shown.filter((line) => !known.has(line))).toEqual([])
})
