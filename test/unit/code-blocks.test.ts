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
  ['{"api_key": "chd_org_1"}', { stdout: 'chd_org_1\n', stderr: '', status: 0 }],
  ['{"output": [], "error": null, "api_key": "of a response"}', { stdout: 'of a response\n', stderr: '', status: 0 }],
  [
    '{"detail": [{}], "error": {"message": "body.name is missing"}}',
    { stdout: '', stderr: 'body.name is missing\n', status: 1 },
  ],
  ['', { stdout: '', stderr: 'No answer. Does npm start run?\n', status: 1 }],
])('field of the quickstart reads %j as a person needs it', (input, expected) => {
  const [field] = /^field\(\) \{[\s\S]*?"; \}$/m.exec(codeBlocksOf('docs/quickstart.md')[1]?.text ?? '') ?? []
  const ran = spawnSync('bash', ['-c', `${field}\nfield api_key`], { input, encoding: 'utf8' })
  expect(ran).toMatchObject(expected)
})
