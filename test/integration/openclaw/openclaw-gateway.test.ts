import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { type AddressInfo, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { WebSocketServer } from 'ws'
import { applyConfig } from '#openclaw/config/apply-config.ts'
import { renderConfig } from '#openclaw/config/config.ts'
import { connectGateway, type GatewayClient } from '#openclaw/gateway/gateway.ts'
import { probeHealth } from '#openclaw/gateway/health.ts'
import { type FakeGateway, Refusal, startFakeGateway } from '../../support/fake-gateway.ts'
import { until } from '../../support/until.ts'

const token = 'the-token'
const signal = new AbortController().signal
const render = (overrides: Record<string, unknown> = {}, botToken: string | null = '1:one') =>
  renderConfig({
    release: 'v1',
    provider: 'anthropic',
    baseUrl: 'http://127.0.0.1:9',
    secretsFile: '/secrets.json',
    port: 1,
    channels: [{ channel: 'telegram', enabled: true, config: { ...(botToken !== null && { botToken }) } }],
    skills: {},
    overrides,
  })

let fake: FakeGateway
let client: GatewayClient | undefined

beforeEach(async () => {
  fake = await startFakeGateway({ token, config: render() })
})

afterEach(async () => {
  client?.close()
  client = undefined
  await fake.close()
})

const connect = async (options: { signal?: AbortSignal; timeoutMs?: number; token?: string } = {}) => {
  client = await connectGateway(fake.endpoint, options.token ?? token, { signal, timeoutMs: 20_000, ...options })
  return client
}

const unavailable = (retryAfterMs: number) =>
  new Refusal({ code: 'UNAVAILABLE', message: 'gateway starting', retryable: true, retryAfterMs })

describe('connecting', () => {
  test('works over a unix socket too', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'openclaw-gateway-'))
    const other = await startFakeGateway({ token, socketPath: join(folder, 's') })
    try {
      const gateway = await connectGateway(other.endpoint, token, { signal, timeoutMs: 20_000 })
      expect(await gateway.call('config.get')).toMatchObject({ valid: true })
      gateway.close()
      expect(await probeHealth(other.endpoint, '/readyz', { timeoutMs: 20_000, signal })).toBe(true)
    } finally {
      await other.close()
      await rm(folder, { recursive: true })
    }
  })

  test('a wrong token is a refusal with the gateway’s message', async () => {
    await expect(connect({ token: 'wrong' })).rejects.toMatchObject({
      name: 'GatewayRefusal',
      message: expect.stringContaining('token mismatch'),
    })
  })

  test('a port without a listener is unreachable, and the outcome is known', async () => {
    await fake.close()
    await expect(connect()).rejects.toMatchObject({ name: 'GatewayUnreachable', outcomeUnknown: false })
  })

  test('a peer that accepts and does not answer is unreachable at the deadline', async () => {
    const mute = createServer(() => {}).listen(0, '127.0.0.1')
    try {
      const address = await until('the mute server', () => mute.address())
      const port = typeof address === 'object' ? address.port : 0
      const mutePeer = connectGateway({ kind: 'tcp', host: '127.0.0.1', port }, token, { signal, timeoutMs: 200 })
      await expect(mutePeer).rejects.toMatchObject({ name: 'GatewayUnreachable', outcomeUnknown: false })
    } finally {
      mute.close()
    }
  })

  test('a gateway that is starting is asked again after the pause that it names', async () => {
    let refusals = 2
    fake.behaviour.onCall = () => {
      if (refusals-- > 0) throw unavailable(10)
    }
    expect(await (await connect()).call('config.get')).toMatchObject({ valid: true })
    expect(refusals).toBeLessThan(0)
  })

  test('a gateway that keeps starting is a refusal with its message at the deadline', async () => {
    fake.behaviour.onCall = () => {
      throw unavailable(3000)
    }
    await expect(connect({ timeoutMs: 5900 })).rejects.toMatchObject({
      code: 'UNAVAILABLE',
      message: 'gateway starting',
    })
  })

  test('an abort ends it with the signal’s reason', async () => {
    fake.behaviour.onCall = () => new Promise(() => {})
    const stop = new AbortController()
    const connecting = connect({ signal: stop.signal })
    stop.abort(new Error('enough'))
    await expect(connecting).rejects.toThrow('enough')
  })
})

describe('calling', () => {
  test('a refusal carries code, message and issues', async () => {
    const gateway = await connect()
    fake.behaviour.onCall = () => {
      const issues = [{ path: 'a.b', message: 'no' }]
      throw new Refusal({ code: 'INVALID_REQUEST', message: 'invalid config: a.b: no', details: { issues } })
    }
    await expect(gateway.call('config.patch')).rejects.toMatchObject({
      name: 'GatewayRefusal',
      code: 'INVALID_REQUEST',
      message: 'invalid config: a.b: no',
      issues: [{ path: 'a.b', message: 'no' }],
    })
  })

  test('A21: every answer of an agent in place of its gateway is a refusal of bounded length', async () => {
    const textless = { toString: 1, valueOf: 1 }
    const server = new WebSocketServer({ port: 0, host: '127.0.0.1' })
    server.on('connection', (socket) => {
      const send = (frame: unknown) => socket.send(JSON.stringify(frame))
      send({ type: 'event', event: 'connect.challenge' })
      socket.on('message', (data) => {
        const { id, method } = JSON.parse(String(data))
        send({ type: 'res', id: textless })
        if (method === 'connect') return send({ type: 'res', id, ok: true, payload: {} })
        const message = method === 'long' ? 'x'.repeat(1_000_000) : textless
        send({
          type: 'res',
          id,
          ok: false,
          error: { code: textless, message, details: { issues: [{ path: textless }] } },
        })
      })
    })
    await once(server, 'listening')
    const { port } = server.address() as AddressInfo
    const hostile = await connectGateway({ kind: 'tcp', host: '127.0.0.1', port }, token, { signal, timeoutMs: 20_000 })
    await expect(hostile.call('odd')).rejects.toMatchObject({ name: 'GatewayRefusal', code: 'UNKNOWN' })
    const refusal: Error = await hostile.call('long').then(
      () => new Error('no refusal'),
      (error) => error,
    )
    expect(refusal.message.length).toBeLessThan(5000)
    hostile.close()
    server.close()
  })

  test('no answer in time leaves the outcome unknown, and the connection usable', async () => {
    const gateway = await connect()
    fake.behaviour.onCall = () => new Promise(() => {})
    await expect(gateway.call('config.patch', {}, { timeoutMs: 50 })).rejects.toMatchObject({
      name: 'GatewayUnreachable',
      outcomeUnknown: true,
    })
    fake.behaviour.onCall = () => {}
    expect(await gateway.call('config.get')).toMatchObject({ valid: true })
  })

  test('a connection that breaks leaves the outcome of open calls unknown, and later ones unsent', async () => {
    const gateway = await connect()
    fake.behaviour.onCall = () => new Promise(() => {})
    const open = gateway.call('config.patch')
    const broken = expect(open).rejects.toMatchObject({ name: 'GatewayUnreachable', outcomeUnknown: true })
    fake.disconnect()
    await broken
    await gateway.closed
    await expect(gateway.call('config.get')).rejects.toMatchObject({
      name: 'GatewayUnreachable',
      outcomeUnknown: false,
    })
  })

  test('an abort ends open calls', async () => {
    const stop = new AbortController()
    const gateway = await connect({ signal: stop.signal })
    fake.behaviour.onCall = () => new Promise(() => {})
    const open = expect(gateway.call('config.patch')).rejects.toMatchObject({ outcomeUnknown: true })
    stop.abort()
    await open
  })

  test('answers find their calls in any order', async () => {
    const gateway = await connect()
    fake.behaviour.onCall = (method) =>
      method === 'config.get' ? new Promise((resolve) => setTimeout(resolve, 50)) : undefined
    const [first, second] = await Promise.allSettled([gateway.call('config.get'), gateway.call('nonsense')])
    expect(first).toMatchObject({ status: 'fulfilled', value: { valid: true } })
    expect(second).toMatchObject({ status: 'rejected', reason: { message: 'unknown method: nonsense' } })
  })
})

describe('health', () => {
  const probe = (path: '/healthz' | '/startupz' | '/readyz') =>
    probeHealth(fake.endpoint, path, { timeoutMs: fake.behaviour.health === 'hung' ? 300 : 20_000, signal })

  test.each([
    ['ok', true, true],
    ['starting', true, false],
    ['hung', false, false],
  ] as const)('of a gateway that is %s', async (health, live, started) => {
    fake.behaviour.health = health
    expect(await probe('/healthz')).toBe(live)
    expect(await probe('/startupz')).toBe(started)
    expect(await probe('/readyz')).toBe(started)
  })

  test('a port without a listener is not healthy', async () => {
    await fake.close()
    expect(await probe('/healthz')).toBe(false)
  })

  test('an abort throws its reason', async () => {
    const stopped = AbortSignal.abort(new Error('enough'))
    await expect(probeHealth(fake.endpoint, '/healthz', { timeoutMs: 300, signal: stopped })).rejects.toThrow('enough')
  })
})

describe('applying a configuration', () => {
  const patches = () => fake.calls.filter(({ method }) => method === 'config.patch')

  test('wanted keys are set, others are removed, and the gateway’s own stay', async () => {
    fake.config = {
      ...fake.config,
      meta: { x: 1 },
      channels: { telegram: { allowFrom: ['a'] } },
      tools: { deny: ['a', 'b'] },
    }
    const wanted = render({ tools: { deny: ['b'] }, messages: { responsePrefix: 'x' } })
    expect(await applyConfig(await connect(), wanted, signal)).toEqual({ restarts: false })
    expect(fake.config).toEqual({ ...wanted, meta: expect.anything() })
  })

  test('a changed secret arrives although the gateway hides it', async () => {
    await applyConfig(await connect(), render({}, '1:two'), signal)
    expect(fake.config.channels).toMatchObject({ telegram: { botToken: '1:two' } })
  })

  test('a removed secret is deleted', async () => {
    await applyConfig(await connect(), render({}, null), signal)
    expect(JSON.stringify(fake.config)).not.toContain('botToken')
  })

  test('a repeated call changes nothing', async () => {
    const gateway = await connect()
    await applyConfig(gateway, render({ messages: { responsePrefix: 'x' } }), signal)
    const before = structuredClone(fake.config)
    await applyConfig(gateway, render({ messages: { responsePrefix: 'x' } }), signal)
    expect(fake.config).toEqual(before)
  })

  test('a refusal changes nothing and carries the gateway’s message', async () => {
    const before = structuredClone(fake.config)
    await expect(applyConfig(await connect(), render({ nonsense: 1 }), signal)).rejects.toMatchObject({
      name: 'GatewayRefusal',
      message: 'invalid config: <root>: Unrecognized key: "nonsense"',
    })
    expect(fake.config).toEqual(before)
  })

  test('the change of another writer in between is replaced', async () => {
    let writes = 2
    fake.behaviour.onCall = (method) => {
      if (method === 'config.patch' && writes-- > 0) fake.config = { ...fake.config, ui: { writes } }
    }
    await applyConfig(await connect(), render({ messages: { responsePrefix: 'x' } }), signal)
    expect(fake.config).toMatchObject({ messages: { responsePrefix: 'x' } })
    expect(fake.config).not.toHaveProperty('ui')
  })

  test('against a writer that never stops, the change fails after five attempts', async () => {
    let writes = 0
    fake.behaviour.onCall = (method) => {
      if (method === 'config.patch') fake.config = { ...fake.config, ui: { writes: writes++ } }
    }
    await expect(applyConfig(await connect(), render(), signal)).rejects.toMatchObject({ code: 'NOT_APPLIED' })
    expect(patches()).toHaveLength(5)
  })

  test('a change that the gateway has lost again is not applied', async () => {
    fake.behaviour.onCall = (method) => {
      if (method === 'config.get' && patches().length > 0) fake.config = render()
    }
    const wanted = render({ messages: { responsePrefix: 'x' } })
    await expect(applyConfig(await connect(), wanted, signal)).rejects.toMatchObject({ code: 'NOT_APPLIED' })
  })

  test('a change that needs a restart reports it when the restart has begun', async () => {
    const gateway = await connect()
    fake.behaviour.onCall = (method) => {
      if (method === 'config.get' && patches().length > 0) setTimeout(() => fake.disconnect(), 50)
    }
    expect(await applyConfig(gateway, render({ browser: { enabled: true } }), signal)).toEqual({ restarts: true })
    await expect(gateway.call('config.get')).rejects.toMatchObject({ name: 'GatewayUnreachable' })
  })
})
