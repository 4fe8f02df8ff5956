import { chmod, readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import OpenAI from 'openai'
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest'
import { secretsPath } from '#openclaw/inside/launch.ts'
import { providerKey, startAgent, type TestAgent } from '../support/agent.ts'
import {
  type Answer,
  type Api,
  api,
  type StreamEvent,
  say,
  sessionPath,
  signUp,
  textOf,
  waitForStatus,
} from '../support/api-client.ts'
import { type ChowderProcess, findGateway } from '../support/chowder-process.ts'
import type { FakeModelProvider } from '../support/fake-model-provider.mjs'
import { present } from '../support/present.ts'
import { runQuickstart } from '../support/quickstart.ts'
import { processesIn } from '../support/run-folder.ts'
import { until } from '../support/until.ts'
import { describeRelay } from './relay-tests.ts'

const model = 'claude-sonnet-4-20250514'

let provider: FakeModelProvider
let agent: TestAgent
let chowder: ChowderProcess
let key: string
let client: Api
let created: Answer
let id: string

beforeAll(async () => {
  agent = await startAgent({ fields: { model_provider: 'anthropic' } })
  ;({ provider, chowder, key, client, created, id } = agent)
})
afterAll(() => agent?.close())

// Before the others, whose sessions would be listed too.
describe('the sessions of a real agent', () => {
  const path = (session = '') => `/v1/instances/${id}/sessions${session && `/${encodeURIComponent(session)}`}`
  const tell = (session: string, text: string) => say(client, sessionPath(id, session), text)
  const listed = async () => (await client.get(path())).body.map((session: { id: string }) => session.id)
  const contents = async (session: string) =>
    (await client.get(path(session))).body.messages.map(({ content }: { content: string }) => content)

  beforeAll(async () => {
    await tell('user-42', 'first')
    await tell('user-42', 'second')
    await tell('Grüße 🦞/%', 'third')
    await tell('main', 'fourth')
  })

  it('are listed by the ids that messages were sent to, page by page', async () => {
    expect(await listed()).toEqual(['main', 'Grüße 🦞/%', 'user-42'])
    const first = await client.get(`${path()}?limit=2`)
    const next = /^<(.*)>; rel="next"$/.exec(first.headers.get('link') ?? '')?.[1] ?? ''
    expect((await client.get(next.slice(chowder.url.length))).body).toMatchObject([
      { id: 'user-42', is_active: false, total_tokens: expect.any(Number), updated_at: expect.stringContaining('T') },
    ])
  })

  it('show what was said, the newest page first', async () => {
    expect(await contents('user-42')).toEqual([
      'first',
      expect.stringContaining('turns=1'),
      'second',
      expect.stringContaining('turns=2'),
    ])
    const page = await client.get(`${path('user-42')}?limit=3`)
    expect(page.body.messages.map(({ role }: { role: string }) => role)).toEqual(['assistant', 'user', 'assistant'])
    const next = /^<(.*)>; rel="next"$/.exec(page.headers.get('link') ?? '')?.[1] ?? ''
    expect((await client.get(next.slice(chowder.url.length))).body.messages).toMatchObject([{ content: 'first' }])
  })

  it('forget what was said when they are reset', async () => {
    expect((await client.post(`${path('user-42')}/reset`)).status).toBe(204)
    expect(await contents('user-42')).toEqual([])
    expect(await tell('user-42', 'again')).toContain('turns=1 last="again"')
  })

  it('are gone when they are deleted, and main is emptied', async () => {
    expect((await client.delete(path('Grüße 🦞/%'))).status).toBe(204)
    expect((await client.delete(path('Grüße 🦞/%'))).status).toBe(404)
    expect((await client.get(path('Grüße 🦞/%'))).status).toBe(404)
    expect((await client.delete(path('main'))).status).toBe(204)
    expect(await listed()).not.toContain('Grüße 🦞/%')
    expect(await contents('main')).toEqual([])
  })

  it('that are deleted in the middle of a turn end the turn', async () => {
    const turn = client.post(sessionPath(id, 'busy'), { model: 'openclaw', input: 'wait [[fake:delay=30000]]' })
    await until('the turn to be under way', async () => (await client.get(path('busy'))).body.is_active === true)
    expect((await client.delete(path('busy'))).status).toBe(204)
    expect((await turn).body.status).not.toBe('completed')
  })

  it('that never were are a 404, also to reset', async () => {
    expect((await client.get(path('nobody'))).status).toBe(404)
    expect((await client.post(`${path('nobody')}/reset`)).status).toBe(404)
    expect(await listed()).not.toContain('nobody')
  })
})

describe('talking to a real agent', () => {
  it('a create answers 201 at once, provisioning, and the agent is running without another call', async () => {
    expect(created.status).toBe(201)
    expect(created.body).toMatchObject({
      status: 'provisioning',
      sandbox_id: null,
      gateway_url: null,
      error_message: null,
    })
    const { body } = await client.get(`/v1/instances/${id}`)
    expect(body).toMatchObject({ status: 'running', step: null, gateway_url: `${chowder.url}/v1/instances/${id}` })
    expect(body.sandbox_id).toEqual(expect.any(String))
  })

  it('the default session remembers, and is the session `main`', async () => {
    expect(await say(client, sessionPath(id), 'my name is Ada')).toContain('turns=1 last="my name is Ada"')
    const second = await say(client, sessionPath(id), 'what is my name?')
    expect(second).toContain('turns=2 last="what is my name?" first="my name is Ada"')
    expect(await say(client, sessionPath(id, 'main'), 'still here')).toContain('turns=3')
  })

  it('sessions are apart, and no crafted id reaches another one', async () => {
    expect(await say(client, sessionPath(id, 'sa'), 'the secret of sa')).toContain('turns=1')
    const crafted = ['SA', ' sa ', 'agent:main:sa', 's-7361', 'Main', '/', '%2F', 'sa%2F..', '🦀', 'x'.repeat(200)]
    for (const session of crafted) {
      const answer = await say(client, sessionPath(id, session), 'what is the secret?')
      expect(answer, session).toContain('turns=1 last="what is the secret?"')
    }
    expect(await say(client, sessionPath(id, 'sa'), 'and again')).toContain(
      'turns=2 last="and again" first="the secret of sa"',
    )
  })

  it('a session id of more than 200 bytes is refused', async () => {
    const answer = await client.post(sessionPath(id, `${'x'.repeat(199)}é`), { model, input: 'hello' })
    expect(answer.status).toBe(400)
    expect(answer.body.detail).toContain('200 bytes')
  })

  it('the model that the caller names is the one that is asked, and the answer names it', async () => {
    const { status, body } = await client.post(sessionPath(id, 'model'), { model, input: 'hello' })
    expect(status).toBe(200)
    expect(body.model).toBe(model)
    expect(textOf(body)).toContain(`model=${model}`)
  })

  it('a stream arrives as the model speaks, and ends with response.completed and [DONE]', async () => {
    const input = '[[fake:chunk-delay=500]] [[fake:words=100]]'
    const stream = client.stream(sessionPath(id, 'stream'), { model, input }, AbortSignal.timeout(60_000))
    const events: StreamEvent[] = []
    for await (const event of stream) events.push(event)
    expect(events[0]?.name).toBe('response.created')
    expect(JSON.parse(events[0]?.data ?? '').response.model).toBe(model)
    const deltas = events.filter(({ name }) => name === 'response.output_text.delta')
    expect(deltas.map(({ data }) => JSON.parse(data).delta).join('')).toMatch(/^word1 .* word100$/)
    const [completed, done] = events.slice(-2)
    expect(completed?.name).toBe('response.completed')
    expect(done?.data).toBe('[DONE]')
    // The provider takes over five seconds for its words: held back, the first would come with the last.
    expect((completed?.at ?? 0) - (deltas[0]?.at ?? 0)).toBeGreaterThan(1000)
  })

  it('the official OpenAI client works with the gateway_url, streamed and not', async () => {
    const { body } = await client.get(`/v1/instances/${id}`)
    const openai = new OpenAI({ baseURL: body.gateway_url, apiKey: key, maxRetries: 0 })
    const whole = await openai.responses.create({ model, input: 'hello from openai' })
    expect(whole.output_text).toContain('last="hello from openai"')
    expect(whole.model).toBe(model)

    const stream = await openai.responses.create({ model, input: 'streamed to openai', stream: true })
    let text = ''
    let last: string | undefined
    for await (const event of stream) {
      if (event.type === 'response.output_text.delta') text += event.delta
      last = event.type
    }
    expect(text).toContain('last="streamed to openai"')
    expect(last).toBe('response.completed')
  })

  it('a client that leaves ends the turn at the provider', async () => {
    const leaving = new AbortController()
    const turn = client.stream(
      sessionPath(id, 'leaving'),
      { model, input: 'leaving [[fake:chunk-delay=2000]]' },
      leaving.signal,
    )
    for await (const { name } of turn) if (name === 'response.output_text.delta') break
    const asked = provider.requests.find(({ last }) => last.startsWith('leaving'))
    expect(asked).toMatchObject({ cut: false })
    leaving.abort()
    await until('the end of the call to the provider', () => asked?.cut, 15_000)
    expect(provider.requests.filter(({ last }) => last.startsWith('leaving'))).toHaveLength(1)
  })

  it('an agent whose provider key is refused ends in `error`, with the reason in words', async () => {
    const other = api(chowder.url, await signUp(chowder.url, 'sk-ant-not-the-key'))
    const { body } = await other.post('/v1/instances', { name: 'wrong key' })
    await expect(waitForStatus(other, body.id, 'running', 30_000)).rejects.toThrow(
      "refused your organization's API key",
    )
    expect((await other.get(`/v1/instances/${body.id}`)).body).toMatchObject({ status: 'error', gateway_url: null })
    const answer = await other.post(sessionPath(body.id), { model, input: 'hello' })
    expect(answer.status).toBe(409)
    expect(answer.headers.get('x-should-retry')).toBe('false')
  })

  it('a failure of the provider is told soon, names the provider, and has a code of its own', async () => {
    const cases = [
      ['[[fake:status=429]] [[fake:message=slow down]] [[fake:retry-after=2]]', 429, 'provider_rate_limited'],
      ['[[fake:status=500]]', 502, 'provider_error'],
      ['[[fake:status=529]]', 502, 'provider_error'],
      ['[[fake:hang-up]]', 502, 'provider_error'],
      ['[[fake:drop]]', 502, 'provider_error'],
      ['[[fake:status=404]]', 400, 'model_not_found'],
    ] as const
    const startedAt = performance.now()
    const answers = await Promise.all(
      cases.map(([input], index) => client.post(sessionPath(id, `failing-${index}`), { model, input })),
    )
    expect(performance.now() - startedAt).toBeLessThan(25_000)
    expect(answers.map(({ status, body }) => [status, body.error.code])).toEqual(
      cases.map(([, status, code]) => [status, code]),
    )
    for (const { body } of answers) expect(body.error.message).toMatch(/model provider \(anthropic\)/)
    const [limited, ...others] = answers
    expect(limited?.body.detail).toMatch(/Try again in 2 s\. It says: “slow down”$/)
    expect([limited?.headers.get('retry-after'), limited?.headers.get('x-should-retry')]).toEqual(['2', null])
    for (const { headers } of others) expect(headers.get('x-should-retry')).toBe('false')
  })

  it('a rate limit of the provider is not to be repeated once the agent has acted', async () => {
    const input = '[[fake:tool=exec {"command":"true"}]] [[fake:then-status=429]]'
    const { body, headers } = await client.post(sessionPath(id, 'acted'), { model, input })
    expect([body.error.code, headers.get('x-should-retry')]).toEqual(['provider_rate_limited', 'false'])
  })

  it('a refused provider key is told from others, and a corrected one works at the next turn', async () => {
    const say = () => client.post(sessionPath(id, 'refused'), { model, input: 'hello' })
    const setKey = (anthropic: string) => client.patch('/v1/organization', { model_api_keys: { anthropic } })
    provider.apiKey = 'sk-ant-canary-corrected'
    try {
      const refused = await say()
      expect([refused.status, refused.body.error.code]).toEqual([502, 'provider_key_refused'])
      expect(refused.body.detail.error).toMatch(
        /^The model provider \(anthropic\) refused .*It says: “invalid api key”$/,
      )
      const held = await say()
      expect([held.status, held.body.error.code]).toEqual([503, 'provider_key_on_hold'])
      expect(Number(held.headers.get('retry-after'))).toBeGreaterThan(0)
      expect((await setKey('sk-ant-canary-corrected')).status).toBe(200)
      expect((await say()).status).toBe(200)
      expect((await client.get(`/v1/instances/${id}/status`)).body.status).toBe('running')
    } finally {
      provider.apiKey = providerKey
      await setKey(providerKey)
    }
  })

  it('the quickstart does what it says, pasted as it is', { tags: ['long'] }, async () => {
    const [models, ...lines] = await runQuickstart(chowder.url, providerKey)
    expect([models, ...lines.slice(0, 5)]).toEqual([
      "[ 'anthropic' ]",
      expect.stringContaining('turns=1 last="Remember 42."'),
      expect.stringContaining('turns=2 last="Which number?" first="Remember 42."'),
      expect.stringContaining('turns=1 last="Hello"'),
      expect.stringContaining('turns=3 last="Hello"'),
      'stopped',
    ])
    // A start that takes over a minute, on a machine as busy as that, is answered while it is under way.
    expect(lines[5]).toMatch(/^(running|provisioning)$/)
    expect(lines.slice(6).join(' ')).toMatch(
      /^(instance\.running )?instance\.start instance\.stopped .*instance\.create $/,
    )
  })

  it('an agent that has spoilt its file of secrets is changed all the same', async () => {
    const { home } = present(await findGateway(id))
    const file = join(home, secretsPath)
    const secrets = await readFile(file, 'utf8')
    // OpenClaw reads it again with each change, and not one that everybody may read.
    for (const [prefix, spoil] of [
      ['one', () => chmod(file, 0o644)],
      ['', () => writeFile(file, '{')],
    ] as const) {
      await spoil()
      const body = { openclaw_config: { 'messages.responsePrefix': prefix } }
      expect((await client.patch(`/v1/instances/${id}`, body)).status).toBe(200)
      expect((await stat(file)).mode & 0o777).toBe(0o600)
      expect(await readFile(file, 'utf8')).toBe(secrets)
    }
  })

  it('no secret is in the logs', async () => {
    const gateway = await findGateway(id)
    expect(gateway?.token).toMatch(/^[0-9a-f]{64}$/)
    for (const secret of [providerKey, key, gateway?.token]) expect(chowder.output()).not.toContain(secret)
    expect(chowder.output()).not.toContain('my name is Ada')
  })
})

describeRelay(() => agent)

describe('the end of its control plane', () => {
  const isInContainer = inject('agentDockerHost') !== null || inject('agentCluster') !== null
  const end = async () => expect(await agent.end()).toBe(0)

  it.skipIf(isInContainer)('by SIGINT ends the agent too', async () => {
    await say(client, sessionPath(id, 'last'), 'remember this')
    await end()
    expect(await processesIn(agent.dataDir)).toEqual([])
  })

  it.skipIf(isInContainer)('is over with the next start: the agent has its memory', { tags: ['long'] }, async () => {
    await agent.startChowder()
    await waitForStatus(agent.client, id, 'running')
    expect(await say(agent.client, sessionPath(id, 'last'), 'again')).toContain('last="again" first="remember this"')
  })

  it.runIf(isInContainer)('by SIGINT leaves an agent in a container as it is', async () => {
    const gateway = await findGateway(id)
    await end()
    expect(await findGateway(id)).toEqual(gateway)
    await agent.startChowder()
    expect((await agent.client.get(`/v1/instances/${id}/status`)).body.status).toBe('running')
    expect(await findGateway(id)).toEqual(gateway)
  })
})
