import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { codeBlocksOf } from './code-blocks.ts'

/**
 * Runs the commands of docs/quickstart.md, from the first call on, as they are. Returns the lines that they print, without
 * the steps of a start.
 */
export async function runQuickstart(url: string, providerKey: string): Promise<string[]> {
  const script = codeBlocksOf('docs/quickstart.md')
    .filter(({ text }) => !text.startsWith('npm '))
    .map(({ language, text }) => (language === 'js' ? `node --input-type=module <<'JS'\n${text}JS\necho` : text))
    .join('\n')
    .replaceAll('http://127.0.0.1:8080', url)
  const { stdout, stderr } = await promisify(execFile)('bash', ['--norc', '-euc', `KEY=; ${script}`], {
    // The commands put it into JSON as it is; those of tests have characters that JSON escapes.
    env: { PATH: process.env.PATH, ANTHROPIC_API_KEY: JSON.stringify(providerKey).slice(1, -1) },
    timeout: 4 * 60_000,
  })
  if (stderr !== '') throw new Error(stderr)
  return stdout.split('\n').filter((line) => !/^([a-z]+[A-Z]\w*|waiting for .*)$/.test(line))
}
