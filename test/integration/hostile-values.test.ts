import { pino } from 'pino'
import { afterAll, afterEach, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { serveMetrics } from '#platform/metrics.ts'
import type { SandboxSpec } from '#sandbox/driver.ts'
import { FakeDriver } from '../support/fake-driver.ts'
import { Refusal, startFakeGateway } from '../support/fake-gateway.ts'
import { openTestChowder } from '../support/test-chowder.ts'
import { until } from '../support/until.ts'

type Json = Record<string, unknown>

/** What a shell, or a program that takes options, would do something with. */
const hostile = [
  '$(touch x)',
  '`id`',
  '; rm -rf ~',
  '| cat',
  "'; exit; '",
  '"; exit; "',
  '--help',
  '-rf',
  'a\nb',
  '&&id',
]

let key: string
let id: string
/** Every argument that a program in a sandbox was run with. */
let run: string[]

type Method = 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE'
const call = (method: Method, path: string, body?: unknown) =>
  chowder.call(method, path, { key, ...(body !== undefined && { body }) })
const ofInstance = (method: Method, path: string, body?: unknown) => call(method, `/v1/instances/${id}${path}`, body)
const isRunning = () => until('it to run', async () => (await ofInstance('GET', '')).body.status === 'running')
const gatewayToken = () => JSON.parse(driver.file(id, 'state/secrets.json') ?? '{}').gatewayToken
const fileConfig = () => JSON.parse(driver.file(id, 'state/openclaw.json') ?? '{}')
const argumentsOf = ({ command, env }: SandboxSpec, home = '/home/agent') => {
  const paths = { node: 'node', release: '/release', home, port: 1 }
  return [...command(paths), ...Object.entries(env(paths)).flat()]
}
const specOf = () => driver.sandboxes.get(id)?.spec as SandboxSpec

const gateway = await startFakeGateway({})
const accountOf = ({ channel }: Json) => ({
  channelAccounts: { [String(channel)]: [{ running: true, connected: true, lifecycle: 'ready', configured: true }] },
  statusIssues: [],
})
Object.assign(gateway.methods, {
  'channels.status': accountOf,
  'channels.start': () => ({ started: true }),
  'plugins.refresh': () => ({ ok: true }),
})
const driver = new FakeDriver(() => gateway.endpoint)
driver.onExec = (argv) => {
  run.push(...argv)
  return undefined
}
const chowder = await openTestChowder({ sandboxes: driver })
await chowder.startWorker()
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})

const providerKey = 'sk-canary-of-the-provider'

beforeEach(async () => {
  run = []
  key = (await chowder.signUp({ providerKey })).key
  id = (await call('POST', '/v1/instances', { name: 'x' })).body.id
  await isRunning()
  gateway.config = fileConfig()
})
afterEach(() => {
  gateway.behaviour.onCall = () => {}
})

describe('A9: a hostile text', () => {
  const isRun = () =>
    [...run, ...argumentsOf(specOf())].filter((argument) => hostile.some((one) => argument.includes(one)))

  test('in a field of a channel reaches the gateway as it is, and no command line', async () => {
    for (const token of hostile) {
      const { status } = await ofInstance('POST', '/channels/discord/connect', { config: { token, nick: token } })
      expect([token, status]).toEqual([token, 200])
      expect(gateway.config.channels).toMatchObject({ discord: { token, nick: token } })
    }
    expect(isRun()).toEqual([])
  })

  test('in openclaw_config, the name, the instructions and the metadata reaches the files of the agent as it is, and no command line', async () => {
    for (const text of hostile) {
      const body = {
        name: text.replace('\n', ' '),
        instructions: text,
        metadata: { note: text.replace('\n', ' ') },
        openclaw_config: { 'messages.responsePrefix': text },
      }
      const created = await call('POST', '/v1/instances', body)
      expect([text, created.status]).toEqual([text, 201])
      id = created.body.id
      await isRunning()
      expect(fileConfig().messages).toEqual({ responsePrefix: text })
      expect(driver.file(id, 'state/workspace/SOUL.md')).toContain(text)
      expect(isRun()).toEqual([])
      expect((await ofInstance('DELETE', '')).status).toBe(204)
    }
  })

  test('in the place of an id that begins with a hyphen is a 404 or 422, and starts nothing', async () => {
    const calls = driver.calls.length
    const words = ['-rf', '--help', '-', '--config=/etc/passwd']
    for (const word of words) {
      const at = encodeURIComponent(word)
      const answers = [
        await call('GET', `/v1/instances/${at}`),
        await call('DELETE', `/v1/instances/${at}`),
        await call('GET', `/v1/instances/${at}/files?path=.`),
        await call('POST', `/v1/instances/${at}/responses`, { model: 'openclaw', input: 'x' }),
        await call('GET', `/v1/keys/${at}`),
        await call('DELETE', `/v1/keys/${at}`),
        await ofInstance('GET', `/channels/${at}`),
        await ofInstance('POST', `/channels/${at}/connect`, { config: {} }),
        await ofInstance('POST', `/channels/${at}/pair`, { code: 'ABCD1234' }),
        await ofInstance('PATCH', '', { model: word }),
        await ofInstance('POST', '/skills/install', { slug: word }),
      ]
      expect([word, answers.map(({ status }) => status).filter((status) => status !== 404 && status !== 422)]).toEqual([
        word,
        [],
      ])
    }
    expect(driver.calls.slice(calls).filter(({ method }) => !['observe', 'list'].includes(method))).toEqual([])
    expect(isRun()).toEqual([])
  })

  test('as the name of a file is a file of that name', async () => {
    for (const path of ['-rf', '--help', '$(touch x)', '; rm -rf ~']) {
      const put = await ofInstance('PUT', '/files/content', { path, content: path })
      expect([path, put.status]).toEqual([path, 204])
      expect(driver.file(id, `state/workspace/${path}`)).toBe(path)
    }
    expect(isRun()).toEqual([])
  })
})

describe('A13: a secret', () => {
  const secrets = {
    provider: providerKey,
    channel: 'canary-token-of-a-channel',
    skill: 'canary-variable-of-a-skill',
    override: 'canary-header-of-an-override',
  }

  /** Makes an instance that has them all. Returns them with the token of its gateway and the key of the caller. */
  async function newInstance(): Promise<string[]> {
    const { body } = await call('POST', '/v1/instances', {
      name: 'y',
      openclaw_config: {
        mcp: { servers: { a: { url: 'https://x.test', headers: { authorization: secrets.override } } } },
      },
    })
    id = body.id
    await isRunning()
    gateway.config = fileConfig()
    const settings = chowder.vault.seal(
      JSON.stringify({ env: { NAME: secrets.skill } }),
      `skills/${id}.weather/sealed_settings`,
    )
    await chowder.database.pool.query(
      `INSERT INTO skills (instance_id, name, sealed_settings) VALUES ($1, 'weather', $2)`,
      [id, settings],
    )
    expect((await ofInstance('POST', '/channels/discord/connect', { config: { token: secrets.channel } })).status).toBe(
      200,
    )
    return [...Object.values(secrets), gatewayToken(), key]
  }

  test('is in no error that the API answers with, no metric, no command line and no line of the log', async () => {
    const all = await newInstance()
    // The gateway repeats everything that it knows in each refusal.
    const said = JSON.stringify([fileConfig(), gateway.config, all])
    gateway.behaviour.onCall = (method) => {
      if (method !== 'connect') throw new Refusal({ code: 'INVALID_REQUEST', message: said })
    }
    driver.output = `${said}\n`
    const answers = [
      await ofInstance('GET', '/channels/discord/status'),
      await ofInstance('POST', '/channels/discord/connect', { config: { token: secrets.channel } }),
      await ofInstance('GET', '/channels/discord/pairings'),
      await ofInstance('GET', '/skills'),
      await ofInstance('PATCH', '/skills/weather', { env: { OTHER: 'x' } }),
      await ofInstance('GET', '/sessions'),
      await ofInstance('PATCH', '', { openclaw_config: { 'messages.responsePrefix': 'z' } }),
      await ofInstance('POST', '/channels/discord/connect', { config: { token: secrets.channel, enabled: true } }),
      await ofInstance('PATCH', '/skills/weather', { env: { PATH: secrets.skill } }),
      await call('PATCH', '/v1/organization', { model_api_keys: { anthropic: { key: secrets.provider } } }),
      await call('POST', '/v1/organization/model_api_keys/test', { model_api_keys: { anthropic: secrets.provider } }),
    ]
    const failed = answers.filter(({ status }) => status >= 400)
    expect(failed.length).toBeGreaterThan(5)
    const holds = (text: string) => all.filter((secret) => text.includes(secret))
    for (const { status, body: answer } of answers)
      expect([status, holds(JSON.stringify(answer))]).toEqual([status, []])
    expect(holds(await metrics())).toEqual([])
    expect(holds([...run, ...argumentsOf(specOf())].join('\n'))).toEqual([])
    expect(holds(chowder.logged.join('\n'))).toEqual([])
    driver.output = 'starting\n'
  })

  test('S16: that a gateway says last is not stored with its failure, nor in the history', async () => {
    const all = (await newInstance()).filter((secret) => secret !== key)
    driver.exitAfterStart = () => {
      all.splice(-1, 1, gatewayToken()) // each start has another one
      driver.output = `The gateway knows ${all.join(', ')}.\n`
      return 78
    }
    onTestFinished(() => {
      driver.exitAfterStart = null
      driver.output = 'starting\n'
    })
    driver.die(id, 78)
    await until('an error', async () => (await ofInstance('GET', '')).body.status === 'error')
    const { rows } = await chowder.database.pool.query(
      'SELECT error_message AS text FROM instances WHERE id = $1 UNION ALL SELECT reason FROM events WHERE instance_id = $1',
      [id],
    )
    const stored = rows.map(({ text }) => text).join('\n')
    expect(stored).toContain(`The gateway knows ${all.map(() => '***').join(', ')}.`)
    expect(all.filter((secret) => stored.includes(secret))).toEqual([])
  })
})

/** All figures of this process, as `/metrics` shows them. */
async function metrics(): Promise<string> {
  const served = await serveMetrics({ host: '127.0.0.1', port: 0 }, [], pino({ level: 'silent' }))
  try {
    return await (await fetch(`http://127.0.0.1:${served.port}/metrics`)).text()
  } finally {
    await served.close()
  }
}
