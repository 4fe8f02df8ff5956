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
  'docs',
  'migrations',
  'releases',
  'package.json',
  'tsconfig.json',
  'vitest.config.ts',
  'openapi.json',
]
const timeoutMs = 6 * 60_000

/** Each bug, the test that must catch it, and where that stands. The quickest one is not `long`. */
const bugs = [
  {
    bug: 'forget-to-look-before-start',
    file: 'sandbox-local',
    caughtBy: 'a second start leaves the gateway running that the first one started',
  },
  {
    bug: 'skip-the-fencing-check',
    file: 'reconcile-property',
    caughtBy: 'an instance settles as its last intent wants',
  },
  {
    bug: 'settle-without-the-generation-guard',
    file: 'reconcile-property',
    caughtBy: 'a delete during any call of a worker is never lost',
  },
  {
    bug: 'drop-the-sweep',
    file: 'integration/lifecycle/lifecycle',
    caughtBy: 'whose job was lost is found by the sweep',
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

/** Runs the tests that catch bugs in a copy of the source. Returns their outcomes by full name. */
async function testCopy(name: string, planted: readonly { file: string; caughtBy: string }[], patch?: string) {
  const copy = join(folder, name)
  for (const part of copied) await cp(join(root, part), join(copy, part), { recursive: true })
  await symlink(join(root, 'node_modules'), join(copy, 'node_modules'))
  if (patch) await run('git', ['apply', '--unsafe-paths', `--directory=${copy}`, patch], { cwd: folder })
  const report = join(copy, 'report.json')
  const files = planted.map(({ file }) => file)
  const named = planted.map(({ caughtBy }) => caughtBy).join('|')
  const options = ['--reporter=json', `--outputFile=${report}`, '--tags-filter=!long', '-t', named]
  const vitest = join(root, 'node_modules/vitest/vitest.mjs')
  // A failing run is expected: the report names the failed tests.
  await run(process.execPath, [vitest, 'run', '--project', 'integration', ...files, ...options], {
    cwd: copy,
    env: { ...process.env, VITEST: '' },
    timeout: timeoutMs,
  }).catch(() => {})
  const { testResults }: Report = JSON.parse(await readFile(report, 'utf8'))
  const results = testResults.flatMap(({ assertionResults }) => assertionResults)
  return ({ caughtBy }: { caughtBy: string }) => {
    const statuses = results.filter(({ fullName }) => fullName.includes(caughtBy)).map(({ status }) => status)
    return { failed: statuses.includes('failed'), passed: statuses.includes('passed') }
  }
}

const limit = { timeout: timeoutMs + 30_000 }

const expectCaught = async (planted: (typeof bugs)[number]) => {
  const patch = join(import.meta.dirname, 'planted', `${planted.bug}.patch`)
  expect((await testCopy(planted.bug, [planted], patch))(planted).failed).toBe(true)
}
const caught = 'the suite catches a planted bug: $bug'
test.each(bugs.slice(0, 1))(caught, limit, expectCaught)
test.each(bugs.slice(1))(caught, { ...limit, tags: ['long'] }, expectCaught)

test('and without any, in a copy likewise, the same tests pass', { ...limit, tags: ['long'] }, async () => {
  const outcomeOf = await testCopy('nothing-planted', bugs)
  expect(bugs.map(outcomeOf)).toEqual(bugs.map(() => ({ failed: false, passed: true })))
})
