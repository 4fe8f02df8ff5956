import { execFile } from 'node:child_process'
import { cp, mkdir, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { providerKey } from '../support/agent.ts'
import { openCloudDriver } from '../support/cloud-driver.ts'
import { type FakeCloud, startFakeCloud } from '../support/fake-cloud.ts'
import { type FakeModelProvider, startFakeModelProvider } from '../support/fake-model-provider.mjs'
import { runQuickstart } from '../support/quickstart.ts'
import { openTestChowder, type TestChowder } from '../support/test-chowder.ts'

const run = promisify(execFile)
const root = join(import.meta.dirname, '../..')

let cloud: FakeCloud
let provider: FakeModelProvider
let url: string
let chowder: TestChowder
let folder: string
let example: string

beforeAll(async () => {
  cloud = await startFakeCloud()
  provider = await startFakeModelProvider()
  chowder = await openTestChowder({ sandboxes: openCloudDriver(cloud.url, 'the test'), providerUrl: provider.url })
  await chowder.startWorker()
  url = await chowder.app.listen({ host: '127.0.0.1', port: 0 })
  folder = await mkdtemp(join(tmpdir(), 'chowder-client-'))
  example = join(folder, 'docs', 'examples')
  await mkdir(example, { recursive: true })
  await cp(join(root, 'openapi.json'), join(folder, 'openapi.json'))
  for (const file of ['package.json', 'package-lock.json', 'tsconfig.json', 'client.ts']) {
    await cp(join(root, 'docs', 'examples', file), join(example, file))
  }
})
afterAll(async () => {
  await chowder?.close()
  await cloud?.close()
  await provider?.close()
  await rm(folder, { recursive: true, force: true })
})

test('the example compiles against types that are generated from the document, and runs', async () => {
  const { key } = await chowder.signUp()
  const npm = (args: string[], env = {}) =>
    run('npm', args, { cwd: example, env: { ...process.env, ...env }, timeout: 120_000 })
  // npm waits five minutes for a connection to the registry that has gone silent.
  await npm(['ci', '--no-audit', '--no-fund', '--prefer-offline', '--fetch-timeout=15000', '--fetch-retries=5'])
  await npm(['run', 'generate'])
  await npm(['run', 'check'])
  const { stdout, stderr } = await npm(['run', '--silent', 'start'], { CHOWDER_URL: url, CHOWDER_KEY: key })
  expect(stderr).toBe('')
  expect(stdout.trimEnd().split('\n')).toEqual([
    'example is running',
    expect.stringContaining('Hello'),
    expect.stringContaining('Hello'),
    '1 in the list',
    'instance.running instance.create',
    'instance_not_found',
  ])
}, 300_000)

// With a real agent, it is among the tests of conversations.
test('the quickstart does what it says, pasted as it is', async () => {
  const [models, first, , , streamed, ...rest] = await runQuickstart(url, providerKey)
  expect([models, first, streamed]).toEqual([
    "[ 'anthropic' ]",
    expect.stringContaining('Hello'),
    expect.stringContaining('Hello'),
  ])
  expect(rest.join(' ')).toMatch(
    /^stopped (running|provisioning) (instance\.running )?instance\.start instance\.stopped .*instance\.create $/,
  )
})
