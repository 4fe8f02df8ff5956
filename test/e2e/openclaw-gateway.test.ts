import { type ChildProcess, spawn } from 'node:child_process'
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { configSchemaText } from '#commands/config-schema.ts'
import type { ModelProvider } from '#database/schema.ts'
import { applyConfig } from '#openclaw/config/apply-config.ts'
import { gatewayOwned, renderConfig } from '#openclaw/config/config.ts'
import { checkAgainstSchema } from '#openclaw/config/config-schema.ts'
import { parseOverrides } from '#openclaw/config/overrides.ts'
import { endRuns } from '#openclaw/gateway/end-runs.ts'
import { connectGateway, type GatewayClient } from '#openclaw/gateway/gateway.ts'
import type { GatewaySecrets } from '#openclaw/gateway/gateway-secrets.ts'
import { probeHealth } from '#openclaw/gateway/health.ts'
import { abortRun, beginRun, readRun, waitForRun } from '#openclaw/gateway/runs.ts'
import { createWatches } from '#openclaw/gateway/watches.ts'
import { configPath, gatewayCommand, gatewayEnv, gatewayFolders, secretsPath } from '#openclaw/inside/launch.ts'
import { defaultModel, listedModels } from '#openclaw/models/models.ts'
import { gatewayProviders } from '#openclaw/models/providers.ts'
import { releaseSource } from '#openclaw/releases.ts'
import type { Endpoint, SandboxPaths } from '#sandbox/driver.ts'
import { type FakeModelProvider, startFakeModelProvider } from '../support/fake-model-provider.mjs'
import { freePort } from '../support/free-port.ts'
import { judgeFrames } from '../support/protocol-schema.ts'
import { type FrameRecorder, recordFrames } from '../support/recorded-frames.ts'
import { preparedRelease } from '../support/release.ts'
import { until } from '../support/until.ts'

const token = 'a-token-of-this-test-and-of-no-other'
const relayToken = 'a-token-of-the-relay'
const signal = new AbortController().signal
const startMs = 120_000

const png = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='
const look = [
  {
    type: 'message',
    role: 'user',
    content: [
      { type: 'input_text', text: 'look' },
      { type: 'input_image', source: { type: 'base64', media_type: 'image/png', data: png } },
    ],
  },
]
/** The models of the documentation; Google has shut its one down, and names this successor. */
const documented = { anthropic: 'claude-sonnet-4-20250514', openai: 'gpt-4o', gemini: 'gemini-2.5-flash' }

interface ProviderBody {
  max_tokens?: number
  max_output_tokens?: number
  generationConfig?: { maxOutputTokens?: number }
}
const maxTokensOf = (body: unknown) => {
  const { max_tokens, max_output_tokens, generationConfig } = body as ProviderBody
  return max_tokens ?? max_output_tokens ?? generationConfig?.maxOutputTokens
}

let model: FakeModelProvider
let paths: SandboxPaths
let endpoint: Endpoint & { kind: 'tcp' }
let child: ChildProcess
let recorder: FrameRecorder
let gateway: GatewayClient

const render = (
  overrides: Record<string, unknown> = {},
  provider: ModelProvider = 'anthropic',
  unlistedModels: string[] = [],
) =>
  renderConfig({
    release: 'v1',
    provider,
    baseUrl: model.url,
    secretsFile: join(paths.home, secretsPath),
    port: paths.port,
    channels: [],
    skills: {},
    unlistedModels,
    overrides: parseOverrides(overrides).tree,
  })

const configOnDisk = async (): Promise<Record<string, unknown>> =>
  JSON.parse(await readFile(join(paths.home, configPath), 'utf8'))

async function withoutOwn(): Promise<Record<string, unknown>> {
  return Object.fromEntries(Object.entries(await configOnDisk()).filter(([key]) => !gatewayOwned.includes(key)))
}

const ask = (input: unknown, { headers, ...fields }: { headers?: Record<string, string>; stream?: boolean } = {}) =>
  fetch(`http://127.0.0.1:${paths.port}/v1/responses`, {
    method: 'POST',
    headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json', ...headers },
    body: JSON.stringify({ model: 'openclaw', input, ...fields }),
    signal: AbortSignal.timeout(60_000),
  })

async function say(input: string): Promise<string> {
  const answer = await ask(input)
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
  const secrets: GatewaySecrets = { gatewayToken: token, relayToken }
  await writeFile(join(home, secretsPath), JSON.stringify(secrets), { mode: 0o600 })
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
  recorder = await recordFrames(endpoint)
  gateway = await connectGateway(recorder.endpoint, token, { signal, timeoutMs: 30_000 })
}, startMs * 2)

afterAll(async () => {
  gateway?.close()
  await recorder?.close()
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

test('a change after which the file has less than half its bytes is made', async () => {
  await applyConfig(gateway, render({ 'messages.responsePrefix': 'x'.repeat(200_000) }), signal)
  expect((await readFile(join(paths.home, configPath))).length).toBeGreaterThan(200_000)
  expect(await applyConfig(gateway, render(), signal)).toEqual({ restarts: false })
  expect(await withoutOwn()).toEqual(render())
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
  [{ a: 1, b: 2, 'session.x': 1, 'tools.deny': ['exec', 5], 'cron.enabled': 1 }, 'tools.deny[1]: Invalid input'],
  [{ 'logging.level': 'loud' }, 'logging.level: Invalid input (allowed: "silent", "fatal"'],
  [{ 'session.dmScope': 'x', 'agents.defaults.maxConcurrent': -1 }, '(must be greater than 0)'],
  [{ 'agents.entries.main.model': { primary: 5 } }, 'agents.entries.main.model: Invalid input'],
])('%j is refused in the gateway’s words, also without it, and changes nothing', async (overrides, words) => {
  const before = await configOnDisk()
  const refusal: Error = await applyConfig(gateway, render(overrides), signal).then(
    () => new Error('it was not refused'),
    (error) => error,
  )
  expect(refusal).toMatchObject({ name: 'GatewayRefusal', message: expect.stringContaining(words) })
  expect(() => checkAgainstSchema('v1', parseOverrides(overrides).tree)).toThrow(
    `OpenClaw refused the configuration: ${refusal.message}`,
  )
  expect(await configOnDisk()).toEqual(before)
})

test('the table says which models do not stream as OpenClaw decides it', async () => {
  const { usesClaudeStreamingRefusalContract: isHeldBack } = await import(
    pathToFileURL(join(paths.release, 'node_modules/@openclaw/ai/dist/internal/anthropic.mjs')).href
  )
  const held = listedModels('v1', 'anthropic').filter(({ id }) => isHeldBack({ id, api: 'anthropic-messages' }))
  const named = (models: readonly { id: string }[]) => models.map(({ id }) => id).sort()
  expect(named(listedModels('v1', 'anthropic').filter(({ streams }) => !streams))).toEqual(named(held))
})

test('the schema of the configuration is the one that the release exports', async () => {
  const committed = await readFile(join(releaseSource('v1'), 'config-schema.json'), 'utf8')
  expect(committed, 'run npm run config-schema').toBe(await configSchemaText(paths.release))
})

test('a wrong token is refused', async () => {
  await expect(connectGateway(endpoint, 'wrong', { signal, timeoutMs: 10_000 })).rejects.toMatchObject({
    name: 'GatewayRefusal',
  })
})

describe('the schema of the protocol that OpenClaw publishes', () => {
  test('is passed by the frames of runs and of all calls so far', async () => {
    const watches = createWatches()
    const watch = await watches.open({ endpoint: recorder.endpoint, token, asks: true }, () => {})
    const run = { sessionKey: 's-6162', timeout: 60 }
    const message = 'work [[fake:tool=exec {"command":"echo made"}]] [[fake:words=20]] [[fake:chunk-delay=50]]'
    await beginRun(watch.gateway, 'a-run', { ...run, message })
    expect(await waitForRun(watch.gateway, 'a-run')).toBe(true)
    expect(await readRun(watch.gateway, run.sessionKey, 'a-run')).toMatchObject({ kind: 'ended' })
    await beginRun(watch.gateway, 'b-run', { ...run, message: '[[fake:delay=30000]]' })
    expect(await endRuns(gateway)).toBe(1)
    await abortRun(watch.gateway, run.sessionKey, 'b-run')
    await gateway.call('channels.status')
    watches.close()

    const { faults, checked } = await judgeFrames(recorder.frames)
    expect(faults).toEqual([])
    const named = (kind: string) => [...checked.keys()].filter((name) => name.endsWith(kind))
    const methods = ['connect', 'agent', 'agent.wait', 'chat.history', 'sessions.list', 'sessions.abort', 'chat.abort']
    expect(named(' params')).toEqual(expect.arrayContaining(methods.map((method) => `${method} params`)))
    expect(named(' result')).toEqual(expect.arrayContaining(['connect result', 'channels.status result']))
    expect(checked.get('agent event')).toBeGreaterThan(19)
    expect(checked.get('chat event')).toBeGreaterThan(4)
  })

  test('is not passed by wrong frames', async () => {
    const { faults } = await judgeFrames([
      { connection: 1, frame: { type: 'req', id: '1', method: 'agent.wait', params: {} } },
      {
        connection: 1,
        frame: { type: 'event', event: 'agent', payload: { runId: 'a', seq: 'b', stream: 'c', ts: 1 } },
      },
      { connection: 1, frame: { type: 'event' } },
    ])
    expect(faults).toEqual(
      expect.arrayContaining([
        "agent.wait params must have required property 'runId'",
        'agent event/seq must be integer',
        "a frame event must have required property 'event'",
      ]),
    )
  })
})

/** Gives the gateway another provider, which that of an instance never gets, with the key that it had been started with. */
async function changeProvider(provider: ModelProvider): Promise<void> {
  const wanted = render({}, provider)
  await applyConfig(gateway, wanted, signal)
  const { hash: baseHash } = (await gateway.call('config.get')) as { hash: string }
  await gateway.call('config.patch', { raw: JSON.stringify({ models: wanted.models }), baseHash })
}

describe('the wire format of each provider', () => {
  const isUsed = (provider: ModelProvider, api: string) => async () => {
    await changeProvider(provider)
    model.reset()
    expect(await say('hi')).toContain('last="hi"')
    expect(model.requests).toMatchObject([{ api, key: relayToken }])
    await expectImages(provider)
    await expectStream(provider)
  }

  // In this order: OpenClaw refuses to halve its file, and the lists of models shrink by less from one to the next.
  test('openai', { tags: ['long'] }, isUsed('openai', 'openai-responses'))
  test('anthropic', isUsed('anthropic', 'anthropic'))
  test('gemini', { tags: ['long'] }, isUsed('gemini', 'gemini'))

  /** The default model, the one of the documentation, and one that is in no table see an image, and are not cut. */
  async function expectImages(provider: ModelProvider): Promise<void> {
    const unlisted = 'a-model-in-no-table'
    await applyConfig(gateway, render({}, provider, [unlisted]), signal)
    for (const id of [defaultModel('v1', provider), documented[provider], unlisted]) {
      model.reset()
      const answer = await ask(look, { headers: { 'x-openclaw-model': `${gatewayProviders[provider].id}/${id}` } })
      expect([id, answer.status]).toEqual([id, 200])
      expect(model.requests).toMatchObject([{ model: id, images: 1 }])
      // Gemini's default model is told no limit.
      const told = maxTokensOf(model.requests[0]?.body) ?? Number.POSITIVE_INFINITY
      expect(told, `max_tokens of ${id}`).toBeGreaterThanOrEqual(provider === 'openai' ? 16_384 : 32_000)
    }
  }

  /** The default model's first delta arrives while the provider still writes. */
  async function expectStream(provider: ModelProvider): Promise<void> {
    model.reset()
    const answer = await ask('[[fake:words=10]] [[fake:chunk-delay=300]]', { stream: true })
    const times: number[] = []
    for await (const chunk of answer.body ?? []) {
      if (Buffer.from(chunk).includes('output_text.delta')) times.push(performance.now())
    }
    const spread = (times.at(-1) ?? 0) - (times[0] ?? 0)
    expect(spread, `ms from the first delta of ${provider} to the last`).toBeGreaterThan(600)
  }
})

test('a change that needs a restart is kept, and the gateway comes back by itself', async () => {
  await changeProvider('anthropic')
  const wanted = render({ 'browser.enabled': true })
  expect(await applyConfig(gateway, wanted, signal)).toEqual({ restarts: true })
  await gateway.closed
  await until('the gateway to be back', () => probeHealth(endpoint, '/startupz', { timeoutMs: 1000, signal }), startMs)
  expect(await withoutOwn()).toEqual(wanted)
  expect(child.exitCode).toBeNull()
})
