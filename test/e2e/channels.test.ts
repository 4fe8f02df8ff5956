import { existsSync, readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { workspacePath } from '#openclaw/inside/launch.ts'
import { startAgent, type TestAgent } from '../support/agent.ts'
import { forAgents } from '../support/agent-sandboxes.ts'
import { type Api, say, sessionPath, waitForStatus } from '../support/api-client.ts'
import { newSecret } from '../support/canary/secrets.ts'
import { findGateway, type GatewayProcess } from '../support/chowder-process.ts'
import { type FakeMatrix, startFakeMatrix } from '../support/fake-matrix.ts'
import { type FakeMattermost, startFakeMattermost } from '../support/fake-mattermost.ts'
import { type FakeSignal, startFakeSignal } from '../support/fake-signal.ts'
import { type FakeTelegram, startFakeTelegram } from '../support/fake-telegram.ts'
import { listenLocally } from '../support/local-server.ts'
import { present } from '../support/present.ts'
import { prepareChannels } from '../support/release.ts'
import { sandboxesSeen } from '../support/sandboxes-seen.ts'
import { until } from '../support/until.ts'

const botToken = newSecret('channel secret', '4242:', '')
const mattermostToken = newSecret('channel secret', 'mm-')
const matrixToken = newSecret('channel secret', 'syt_')
const signalAccount = '+15550001111'
const code = /\b[A-Z0-9]{8}\b/

describe('chat channels of a real agent', () => {
  let telegram: FakeTelegram
  let mattermost: FakeMattermost
  let signal: FakeSignal
  let matrix: FakeMatrix
  let agent: TestAgent
  let client: Api
  let id: string
  let gateway: GatewayProcess | null

  const channelPath = (channel: string, action = '') => `/v1/instances/${id}/channels/${channel}${action}`
  const connect = (channel: string, config?: Record<string, unknown>) =>
    client.post(channelPath(channel, '/connect'), config && { config })

  beforeAll(async () => {
    telegram = await startFakeTelegram(botToken)
    mattermost = await startFakeMattermost(mattermostToken)
    signal = await startFakeSignal(signalAccount)
    matrix = await startFakeMatrix(matrixToken)
    await prepareChannels()
    const env = { npm_config_registry: 'http://127.0.0.1:9' }
    agent = await startAgent({ env })
    ;({ client, id } = agent)
    gateway = await findGateway(id)
  })

  afterAll(async () => {
    await agent?.close()
    await Promise.all([telegram?.close(), mattermost?.close(), signal?.close(), matrix?.close()])
  })

  it('a token that Telegram refuses is a 400 with its words, and nothing is stored', async () => {
    const answer = await connect('telegram', { token: '1:wrong', apiRoot: await forAgents(telegram.url) })
    // OpenClaw tells its last error with the status, and before there is one what its own look at Telegram said.
    expect(answer).toMatchObject({ status: 400, body: { detail: expect.stringMatching(/401|Unauthorized$/) } })
    expect((await client.get(channelPath('telegram', '/status'))).body).toMatchObject({
      enabled: false,
      connected: false,
    })
  })

  it('a token that a platform quotes in its words is neither in the answer nor in what the gateway writes', async () => {
    const quoting = createServer(({ url }, response) => {
      const refusal = { ok: false, error_code: 500, description: `No such method: ${url}` }
      response.writeHead(500, { 'content-type': 'application/json' }).end(JSON.stringify(refusal))
    })
    const { url, close } = await listenLocally(quoting)
    try {
      const token = newSecret('channel secret', '4343:', '')
      const answer = await connect('telegram', { token, apiRoot: await forAgents(url) })
      expect(answer.status).toBe(502)
      expect(JSON.stringify(answer.body)).not.toContain(token)
      const output = () => sandboxesSeen(agent.dataDir).outputOf(id)
      await until('the gateway to write of it', async () => (await output()).includes('No such method: /bot***'))
      expect(await output()).not.toContain(token)
    } finally {
      await close()
    }
  })

  /** A stranger is sent a code, approved by it, and then answered, in a conversation of their own. */
  async function pairAndTalk(channel: string, write: (text: string) => void, sent: readonly { text: string }[]) {
    write('let me in')
    const asked = await until('a pairing code', () => sent.find(({ text }) => code.test(text)), 60_000)
    const [pairingCode = ''] = code.exec(asked.text) ?? []
    expect((await client.get(channelPath(channel, '/pairings'))).body).toHaveLength(1)
    expect(await client.post(channelPath(channel, '/pair'), { code: 'WRONG123' })).toMatchObject({ status: 400 })
    const paired = await client.post(channelPath(channel, '/pair'), { code: pairingCode.toLowerCase() })
    expect(paired).toMatchObject({ status: 200, body: { code: pairingCode.toLowerCase(), status: 'approved' } })
    expect((await client.get(channelPath(channel, '/pairings'))).body).toEqual([])
    await talk(channel, write, sent)
  }

  async function talk(channel: string, write: (text: string) => void, sent: readonly { text: string }[]) {
    write(`hello from ${channel}`)
    const answered = () => sent.some(({ text }) => /turns=1 /.test(text) && text.includes(`hello from ${channel}`))
    await until('an answer', answered, 60_000)
  }

  it('Telegram is connected by the gateway’s word, and a stranger is paired and answered', async () => {
    expect(await connect('telegram', { token: botToken, apiRoot: await forAgents(telegram.url) })).toMatchObject({
      status: 200,
      body: { channel: 'telegram', status: 'connected', qr_data: null, qr_image_base64: null, message: null },
    })
    expect((await client.get(channelPath('telegram', '/status'))).body).toMatchObject({
      enabled: true,
      connected: true,
      details: { account: 'chowder_test_bot' },
    })
    await pairAndTalk('telegram', (text) => telegram.write({ id: 777, name: 'Ann' }, text), telegram.sent)
  })

  it('Mattermost’s plugin is put into the running agent, which is not restarted, and a stranger is paired and answered', {
    tags: ['long'],
  }, async () => {
    const config = {
      bot_token: mattermostToken,
      base_url: await forAgents(mattermost.url),
      network: { dangerouslyAllowPrivateNetwork: true },
    }
    expect(await connect('mattermost', config)).toMatchObject({ status: 200, body: { status: 'connected' } })
    expect(await findGateway(id)).toEqual(gateway)
    await until('the bot to be let in', () => mattermost.isListening())
    await pairAndTalk('mattermost', (text) => mattermost.write({ id: 'bob', name: 'bob' }, text), mattermost.posts)
  })

  it('Signal’s plugin likewise', { tags: ['long'] }, async () => {
    const transport = { kind: 'external-native', url: await forAgents(signal.url) }
    expect(await connect('signal', { account: signalAccount, transport })).toMatchObject({
      status: 200,
      body: { status: 'connected' },
    })
    await pairAndTalk('signal', (text) => signal.write({ number: '+15550002222', name: 'Cleo' }, text), signal.sent)
  })

  it('Matrix’s plugin likewise, and with OpenClaw’s own keys a stranger need not be paired', {
    tags: ['long'],
  }, async () => {
    const config = {
      homeserver: await forAgents(matrix.url),
      user_id: matrix.userId,
      access_token: matrixToken,
      network: { dangerouslyAllowPrivateNetwork: true },
      dm: { policy: 'open', allowFrom: ['*'] },
    }
    expect(await connect('matrix', config)).toMatchObject({ status: 200, body: { status: 'connected' } })
    await talk('matrix', matrix.write, matrix.sent)
  })

  it('all of it is there again after a stop in the middle of a turn and a start, and nobody runs that turn again', async () => {
    const { provider } = agent
    const cut = client.post(sessionPath(id, 'cut'), {
      model: 'openclaw',
      input: '[[fake:words=60]] [[fake:chunk-delay=500]]',
    })
    await until('the turn', () => provider.requests.some(({ last }) => last.includes('words=60')))
    const askedAt = performance.now()
    expect((await client.post(`/v1/instances/${id}/stop`)).status).toBe(200)
    expect(performance.now() - askedAt, 'ms until it was stopped; it is killed after 10 s').toBeLessThan(9000)
    expect((await cut).status).not.toBe(200)
    const asked = provider.requests.length
    expect((await client.post(`/v1/instances/${id}/start`)).status).toBeOneOf([200, 201, 202, 204])
    await waitForStatus(client, id, 'running')
    const { body } = await client.get(`/v1/instances/${id}/channels`)
    const connected: string[] = body
      .filter(({ enabled }: { enabled: boolean }) => enabled)
      .map(({ channel }: { channel: string }) => channel)
    expect(connected).toEqual(expect.arrayContaining(['telegram']))
    for (const channel of connected) {
      const isUp = async () => (await client.get(channelPath(channel, '/status'))).body.connected === true
      await until(`${channel} to be connected`, isUp, 60_000)
    }
    expect(provider.requests.slice(asked)).toEqual([])
    // The agent has the message of before in mind, so what it says is the provider's answer to both.
    const next = await client.post(sessionPath(id, 'cut'), { model: 'openclaw', input: 'still there?' })
    expect(next.status).toBe(200)
  })

  /** Kills the gateway, and waits until the next one has noted its start. */
  async function kill(): Promise<void> {
    const starts = async () => {
      const { body } = await client.get(`/v1/instances/${id}/logs?tail=1000`)
      return body.filter(({ text }: { text: string }) => text.includes('spawn broker ready')).length
    }
    const started = await starts()
    const { pid } = present(await findGateway(id))
    process.kill(pid, 'SIGKILL')
    const next = async () => {
      const found = await findGateway(id)
      return found && found.pid !== pid
    }
    await until('the next gateway', next, 60_000)
    await until('it to note its start', async () => (await starts()) > started, 60_000)
  }

  it('after kill -9 in the middle of a turn, channels answer, and nobody runs that turn again', async () => {
    const { provider } = agent
    const asked = provider.requests.length
    const input = '[[fake:tool=exec {"command":"echo ran >> ran; sleep 30"}]]'
    const lastEvent = async () => {
      let last = ''
      const body = { model: 'openclaw', input }
      for await (const { data } of client.stream(sessionPath(id, 'killed'), body, AbortSignal.timeout(60_000))) {
        if (data !== '[DONE]') last = data
      }
      return JSON.parse(last)
    }
    const cut = lastEvent()
    const ran = join(present(await findGateway(id)).home, workspacePath, 'ran')
    await until('the tool to run', () => existsSync(ran))
    await kill()
    const lost = await cut
    expect(lost).toMatchObject({ type: 'response.failed', response: { status: 'failed' } })
    await waitForStatus(client, id, 'running')

    telegram.write({ id: 777, name: 'Ann' }, 'are you there?')
    await until('an answer', () => telegram.sent.some(({ text }) => text.includes('are you there?')), 60_000)
    expect(readFileSync(ran, 'utf8')).toBe('ran\n')
    expect(provider.requests.slice(asked).map(({ last }) => last)).toEqual([input, expect.stringContaining('are you')])
    expect((await client.get(`/v1/instances/${id}/responses/${lost.response.id}`)).body.status).toBe('failed')
    expect((await client.post(sessionPath(id, 'killed'), { model: 'openclaw', input: 'and you?' })).status).toBe(200)
  })

  it('after three ends by itself within five minutes the agent answers without channels, until each is connected, or its restart', {
    tags: ['long'],
  }, async () => {
    const status = async () => (await client.get(channelPath('telegram', '/status'))).body
    const isLeftOut = async () => (await status()).details.error?.includes('started no channel')
    const isAnswered = async (text: string) => {
      telegram.write({ id: 777, name: 'Ann' }, text)
      await until('an answer', () => telegram.sent.some((sent) => sent.text.includes(text)), 60_000)
    }
    await kill()
    await kill()
    await waitForStatus(client, id, 'running')
    await until('the channel to be off', isLeftOut, 60_000)
    expect((await status()).connected).toBe(false)
    expect((await client.post(sessionPath(id, 'api'), { model: 'openclaw', input: 'hello' })).status).toBe(200)
    const leftOut = await findGateway(id)
    expect(await connect('telegram')).toMatchObject({ status: 200, body: { status: 'connected' } })
    await isAnswered('and still there?')
    expect(await findGateway(id)).toEqual(leftOut)

    await kill()
    await waitForStatus(client, id, 'running')
    await until('the channel to be off again', isLeftOut, 60_000)
    await client.post(`/v1/instances/${id}/restart`)
    await waitForStatus(client, id, 'running')
    await isAnswered('and after your restart?')
  })

  it('people of different channels have conversations of their own, and the API’s is another', async () => {
    expect(await say(client, sessionPath(id), 'who wrote to you?')).toContain('turns=1')
  })
})
