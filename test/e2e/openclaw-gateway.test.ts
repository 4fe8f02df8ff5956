import { type ChildProcess, spawn } from 'node:child_process'
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { ModelProvider } from '#database/schema.ts'
import { applyConfig } from '#openclaw/apply-config.ts'
import { gatewayOwned, renderConfig } from '#openclaw/config.ts'
import { connectGateway, type GatewayClient } from '#openclaw/gateway.ts'
import { probeHealth } from '#openclaw/health.ts'
import { configPath, gatewayCommand, gatewayEnv, gatewayFolders } from '#openclaw/launch.ts'
import { parseOverrides } from '#openclaw/overrides.ts'
import type { Endpoint, SandboxPaths } from '#sandbox/driver.ts'
import { type FakeModelProvider, startFakeModelProvider } from '../support/fake-model-provider.mjs'
import { freePort } from '../support/free-port.ts'
import { preparedRelease } from '../support/release.ts'
import { until } from '../support/until.ts'

const token = 'a-token-of-this-test-and-of-no-other'
const signal = new AbortController().signal
const startMs = 120_000

let model: FakeModelProvider
let paths: SandboxPaths
let endpoint: Endpoint & { kind: 'tcp' }
let child: ChildProcess
let gateway: GatewayClient

const render = (overrides: Record<string, unknown> = {}, provider: ModelProvider = 'anthropic', providerKey = 'sk-1') =>
  renderConfig({
    release: 'v1',
    provider,
    providerKey,
    baseUrl: model.url,
    token,
    port: paths.port,
    channels: [],
    skills: {},
    overrides: parseOverrides(overrides).tree,
  })

const configOnDisk = async (): Promise<Record<string, unknown>> =>
  JSON.parse(await readFile(join(paths.home, configPath), 'utf8'))

async function withoutOwn(): Promise<Record<string, unknown>> {
  return Object.fromEntries(Object.entries(await configOnDisk()).filter(([key]) => !gatewayOwned.includes(key)))
}

async function say(input: string): Promise<string> {
  const answer = await fetch(`http://127.0.0.1:${paths.port}/v1/responses`, {
    method: 'POST',
    headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
    body: JSON.stringify({ model: 'openclaw', input }),
    signal: AbortSignal.timeout(60_000),
  })
  const body = (await answer.json()) as { output: { content: { text: string }[] }[] }
  return body.output[0]?.content[0]?.text ?? JSON.stringify(body)
}

beforeAll(async () => {
  const release = await preparedRelease()
  model = await startFakeModelProvider()
  const home = await mkdtemp(join(tmpdir(), 'openclaw-e2e-'))
  paths = { node: process.execPath, release, home, port: await freePort() }
  endpoint = { kind: 'tcp', host: '127.0.0.1', port: paths.port }
  for (const folder of gatewayFolders) await mkdir(join(home, folder))
  await writeFile(join(home, configPath), JSON.stringify(render()), { mode: 0o600 })
  const [command = '', ...args] = gatewayCommand(paths)
  child = spawn(command, args, { env: gatewayEnv(paths), cwd: home, stdio: 'ignore' })
  await until(
    'the gateway to start',
    () => {
      if (child.exitCode !== null) throw new Error(`the gateway ended with ${child.exitCode}`)
      return probeHealth(endpoint, '/startupz', { timeoutMs: 1000, signal })
    },
    startMs,
  )
  gateway = await connectGateway(endpoint, token, { signal, timeoutMs: 30_000 })
}, startMs * 2)

afterAll(async () => {
  gateway?.close()
  if (child) {
    const ended = new Promise((resolve) => child.once('exit', resolve))
    child.kill('SIGKILL')
    await ended
  }
  await model?.close()
  if (paths) await rm(paths.home, { recursive: true, maxRetries: 10, retryDelay: 200 })
})

test('a rendered configuration starts the gateway, which leaves the file as it is', async () => {
  expect(await say('hello')).toContain('turns=1 last="hello"')
  expect(await configOnDisk()).toEqual(render())
})

test('turns make no model calls of their own', () => {
  expect(model.requests).toHaveLength(1)
})

test('only its own keys are added by a hot change', async () => {
  const wanted = render({ 'messages.responsePrefix': '' })
  expect(await applyConfig(gateway, wanted, signal)).toEqual({ restarts: false })
  expect(await withoutOwn()).toEqual(wanted)
  expect(Object.keys(await configOnDisk())).toEqual(expect.arrayContaining([...gatewayOwned]))
})

test('arrays, nested removals and channels come and go', async () => {
  const wanted = render({
    'agents.defaults.model': { primary: 'anthropic/claude-sonnet-5', fallbacks: ['anthropic/a', 'anthropic/b'] },
    'agents.defaults.models["anthropic/claude-4.6"].alias': 'old',
    'channels.telegram': {
      enabled: true,
      botToken: '123:abc',
      dmPolicy: 'allowlist',
      allowFrom: ['1', '2'],
      apiRoot: model.url,
    },
  })
  await applyConfig(gateway, wanted, signal)
  expect(await withoutOwn()).toEqual(wanted)

  const fewer = render({ 'agents.defaults.model.fallbacks': ['anthropic/b'] })
  await applyConfig(gateway, fewer, signal)
  expect(await withoutOwn()).toEqual(fewer)

  await applyConfig(gateway, render(), signal)
  expect(await withoutOwn()).toEqual(render())
})

test.each([
  [{ nonsense: 1 }, 'Unrecognized key: "nonsense"'],
  [{ 'agents.defaults.timeFormat': 1 }, 'agents.defaults: Unrecognized key: "timeFormat"'],
  [{ 'agents.defaults.model': 3 }, 'agents.defaults.model: Invalid input'],
  [{ 'agents.defaults.model': null, 'agent.x': 1 }, 'Unrecognized key: "agent"'],
])('%j is refused in the gateway’s words and changes nothing', async (overrides, words) => {
  const before = await configOnDisk()
  await expect(applyConfig(gateway, render(overrides), signal)).rejects.toMatchObject({
    name: 'GatewayRefusal',
    message: expect.stringContaining(words),
  })
  expect(await configOnDisk()).toEqual(before)
})

test('a wrong token is refused', async () => {
  await expect(connectGateway(endpoint, 'wrong', { signal, timeoutMs: 10_000 })).rejects.toMatchObject({
    name: 'GatewayRefusal',
  })
})

describe('the wire format of each provider', () => {
  test.each([
    ['openai', 'openai-responses'],
    ['gemini', 'gemini'],
    ['anthropic', 'anthropic'],
  ] as const)('%s, with its key changed hot', async (provider, api) => {
    await applyConfig(gateway, render({}, provider, `key-of-${provider}`), signal)
    model.reset()
    expect(await say('hi')).toContain('last="hi"')
    expect(model.requests).toMatchObject([{ api, key: `key-of-${provider}` }])
  })
})

test('a change that needs a restart is kept, and the gateway comes back by itself', async () => {
  const wanted = render({ 'browser.enabled': true })
  expect(await applyConfig(gateway, wanted, signal)).toEqual({ restarts: true })
  await gateway.closed
  await until('the gateway to be back', () => probeHealth(endpoint, '/startupz', { timeoutMs: 1000, signal }), startMs)
  expect(await withoutOwn()).toEqual(wanted)
  expect(child.exitCode).toBeNull()
})
