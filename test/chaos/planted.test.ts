import { execFile } from 'node:child_process'
import { cp, mkdtemp, readFile, rm, symlink } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, expect, test } from 'vitest'

const run = promisify(execFile)
const root = join(import.meta.dirname, '../..')
/** All that the tests of the copy read. */
const copied = [
  'src',
  'test',
  'migrations',
  'releases',
  'package.json',
  'tsconfig.json',
  'vitest.config.ts',
  'openapi.json',
]
const timeoutMs = 4 * 60_000

/** Each bug, the test that must catch it, and where that stands. */
const bugs = [
  {
    bug: 'skip-the-fencing-check',
    file: 'reconcile-property',
    caughtBy: 'whatever is asked, whatever fails, whoever is killed',
  },
  {
    bug: 'settle-without-the-generation-guard',
    file: 'reconcile-property',
    caughtBy: 'a delete that comes while a worker is at any of its calls is never swallowed',
  },
  { bug: 'drop-the-sweep', file: 'integration/lifecycle', caughtBy: 'whose bell was lost is found by the sweep' },
  {
    bug: 'forget-to-look-before-start',
    file: 'sandbox-local',
    caughtBy: 'a second start leaves the gateway running that the first one started',
  },
]

let folder: string

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'chowder-planted-'))
})
afterAll(() => rm(folder, { recursive: true, force: true }))

interface Report {
  testResults: { assertionResults: { fullName: string; status: string }[] }[]
}

/** The names of the tests that failed and of those that passed, of a test file in a copy of the source. */
async function testCopy(name: string, { file, caughtBy }: { file: string; caughtBy: string }, patch?: string) {
  const copy = join(folder, name)
  for (const part of copied) await cp(join(root, part), join(copy, part), { recursive: true })
  await symlink(join(root, 'node_modules'), join(copy, 'node_modules'))
  if (patch) await run('git', ['apply', '--unsafe-paths', `--directory=${copy}`, patch], { cwd: folder })
  const report = join(copy, 'report.json')
  const options = ['--reporter=json', `--outputFile=${report}`, '-t', caughtBy]
  const vitest = join(root, 'node_modules/vitest/vitest.mjs')
  // A run that fails is what is looked for: the report says what failed.
  await run(process.execPath, [vitest, 'run', '--project', 'integration', file, ...options], {
    cwd: copy,
    env: { ...process.env, VITEST: '' },
    timeout: timeoutMs,
  }).catch(() => {})
  const { testResults }: Report = JSON.parse(await readFile(report, 'utf8'))
  const results = testResults.flatMap(({ assertionResults }) => assertionResults)
  const named = (status: string) =>
    results.filter((result) => result.status === status && result.fullName.includes(caughtBy)).length
  return { failed: named('failed'), passed: named('passed') }
}

test.each(bugs)('the suite catches a planted bug: $bug', { timeout: timeoutMs + 30_000 }, async (planted) => {
  const patch = join(import.meta.dirname, 'planted', `${planted.bug}.patch`)
  expect((await testCopy(planted.bug, planted, patch)).failed).toBeGreaterThan(0)
})

test.each(bugs)(
  'and without it, in the same copy, the same test passes: $bug',
  { timeout: timeoutMs + 30_000 },
  async (planted) => {
    const { failed, passed } = await testCopy(`${planted.bug}-not-planted`, planted)
    expect([failed, passed > 0]).toEqual([0, true])
  },
)
