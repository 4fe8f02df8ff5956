import { spawnSync } from 'node:child_process'
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

test.each([
  ['{"api_key": "chd_org_1"}', 'chd_org_1\n'],
  ['{"detail": [{}], "error": {"message": "body.name is missing"}}', 'body.name is missing\n'],
  ['{"output": [], "error": null, "api_key": "of a response"}', 'of a response\n'],
])('field of the quickstart reads %j as a person needs it', (input, stdout) => {
  const field = commandsOf('docs/quickstart.md').find((line) => line.startsWith('field()'))
  const ran = spawnSync('bash', ['-c', `${field}\nfield api_key`], { input, encoding: 'utf8' })
  expect(ran).toMatchObject({ stdout, stderr: '' })
})
