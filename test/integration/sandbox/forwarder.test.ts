import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createServer, type Server } from 'node:http'
import { type AddressInfo, connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { connectGateway } from '#openclaw/gateway/gateway.ts'
import { GatewayUnreachable } from '#openclaw/gateway/gateway-errors.ts'
import { probeHealth } from '#openclaw/gateway/health.ts'
import { createForwarder } from '#sandbox/container/image/forwarder.ts'
import type { Endpoint } from '#sandbox/driver.ts'
import { type FakeGateway, startFakeGateway } from '../../support/fake-gateway.ts'
import { present } from '../../support/present.ts'
import { until } from '../../support/until.ts'

const token = 'the-gateways-token'
const authorization = `Bearer ${token}`
const turn = JSON.stringify({ model: 'openclaw', input: 'Hi' })

describe('the forwarder before a gateway', () => {
  let gateway: FakeGateway
  let forwarder: Server
  let folder: string
  let port: number
  let url: string
  const endpoint = (): Endpoint => ({ kind: 'tcp', host: '127.0.0.1', port })
  const writeToken = (value: unknown) =>
    writeFile(join(folder, 'config.json'), JSON.stringify({ gateway: { token: value } }))

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'chowder-forwarder-'))
    gateway = await startFakeGateway({ token })
    forwarder = createForwarder((gateway.endpoint as { port: number }).port, {
      tokenFile: join(folder, 'config.json'),
      tokenKeys: ['gateway', 'token'],
      openPaths: ['/healthz', '/startupz'],
    }).listen(0, '127.0.0.1')
    await once(forwarder, 'listening')
    port = (forwarder.address() as AddressInfo).port
    url = `http://127.0.0.1:${port}`
  })
  beforeEach(async () => {
    gateway.turns.length = 0
    gateway.calls.length = 0
    await writeToken(token)
  })
  afterAll(async () => {
    forwarder.close()
    forwarder.closeAllConnections()
    await gateway.close()
    await rm(folder, { recursive: true })
  })

  const post = (headers: Record<string, string>, body = turn) =>
    fetch(`${url}/v1/responses`, { method: 'POST', headers: { 'content-type': 'application/json', ...headers }, body })

  test('lets through only requests with the token', async () => {
    const refused = [{}, { authorization: 'Bearer wrong' }, { authorization: token }, { authorization: 'Bearer ' }]
    for (const headers of refused) expect((await post(headers as Record<string, string>)).status).toBe(403)
    expect(gateway.turns).toEqual([])
    const answer = await post({ authorization, 'x-openclaw-session-key': 'main' })
    expect(await answer.json()).toMatchObject({ status: 'completed' })
    expect(gateway.turns[0]?.headers).toMatchObject({ authorization, 'x-openclaw-session-key': 'main' })
    expect(gateway.turns[0]?.body).toEqual(JSON.parse(turn))
  })

  test('presents every caller as one of the gateway’s own host', async () => {
    await post({ authorization, 'x-forwarded-for': '203.0.113.9' })
    const { headers } = present(gateway.turns[0])
    expect(headers.host).toBe(`127.0.0.1:${(gateway.endpoint as { port: number }).port}`)
  })

  test('needs no token for a GET of the health paths', async () => {
    expect(await probeHealth(endpoint(), '/healthz', { timeoutMs: 20_000, signal: AbortSignal.timeout(20_000) })).toBe(
      true,
    )
    const statuses = await Promise.all([
      fetch(`${url}/healthz`, { method: 'POST' }),
      fetch(`${url}/healthz?x`),
      fetch(`${url}/healthz/`),
      fetch(`${url}/readyz`),
      fetch(`${url}/`),
    ])
    expect(statuses.map(({ status }) => status)).toEqual([403, 403, 403, 403, 403])
  })

  test('passes on no body of a GET of a health path', async () => {
    const asking = connect(port, '127.0.0.1')
    asking.write('GET /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n')
    expect((await once(asking, 'data')).toString()).toMatch(/^HTTP\/1.1 200/) // of a body that never comes
    asking.destroy()
  })

  test('T8: limits the connections of all addresses together', async () => {
    const from = (index: number) => ({ host: '127.0.0.1', port, localAddress: `127.0.0.${2 + (index % 3)}` })
    const sockets = Array.from({ length: 300 }, (_, index) => connect(from(index)).on('error', () => {}))
    try {
      await until('some to be ended', () => sockets.filter((socket) => socket.closed).length >= 44)
      expect(sockets.filter((socket) => !socket.closed).length).toBeGreaterThan(200)
    } finally {
      for (const socket of sockets) socket.destroy()
    }
    await until('another', async () => (await post({ authorization }).catch(() => null))?.status === 200)
  })

  test('limits the time and the size of a request’s headers', async () => {
    const socket = connect(port, '127.0.0.1')
    socket.write('GET /healthz HTTP/1.1\r\nhost: x\r\n')
    const large = connect(port, '127.0.0.1')
    large.write(`GET /healthz HTTP/1.1\r\nhost: x\r\nx: ${'x'.repeat(10_000)}\r\n\r\n`)
    expect(await text(large)).toMatch(/^HTTP\/1.1 431/)
    const startedAt = performance.now()
    expect(await text(socket)).toMatch(/^HTTP\/1.1 408/)
    expect(performance.now() - startedAt).toBeLessThan(25_000)
  })

  test('checks the token at each request of a connection that is kept', async () => {
    const socket = connect(port, '127.0.0.1')
    const head = (path: string, ...lines: string[]) =>
      `GET ${path} HTTP/1.1\r\n${['host: x', ...lines].join('\r\n')}\r\n\r\n`
    socket.write(head('/healthz') + head('/v1/responses', `authorization: ${authorization}`))
    let answers = ''
    socket.setEncoding('utf8').on('data', (part: string) => {
      answers += part
    })
    await until('two answers', () => answers.match(/HTTP\/1.1 (200|405)/g)?.length === 2)
    socket.write(head('/v1/responses'))
    await once(socket, 'close')
    expect(answers.match(/HTTP\/1.1 \d+/g)).toEqual(['HTTP/1.1 200', 'HTTP/1.1 405', 'HTTP/1.1 403'])
  })

  test('upgrades a connection with the token, and refuses one without', async () => {
    const signal = AbortSignal.timeout(10_000)
    const client = await connectGateway(endpoint(), token, { signal, timeoutMs: 5000 })
    expect(await client.call('config.get')).toMatchObject({ hash: expect.any(String) })
    client.close()
    await client.closed
    const refused = connectGateway(endpoint(), 'wrong', { signal, timeoutMs: 5000 })
    await expect(refused).rejects.toThrow(GatewayUnreachable)
    const socket = connect(port, '127.0.0.1')
    socket.write('GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n')
    expect(await text(socket)).toMatch(/^HTTP\/1.1 403/)
  })

  test('reads the current token, and refuses every request while there is none', async () => {
    for (const none of [undefined, '', 7, null]) {
      await writeToken(none)
      expect((await post({ authorization: `Bearer ${none}` })).status).toBe(403)
    }
    await rm(join(folder, 'config.json'))
    expect((await post({ authorization })).status).toBe(403)
    await writeToken(token)
    expect((await post({ authorization })).status).toBe(200)
  })

  test('passes on each part of an answer at once, and the disconnection of a client', async () => {
    const left = Promise.withResolvers<void>()
    const slow = createServer((_, answer) => {
      answer.on('close', () => left.resolve())
      answer.write('first')
    }).listen(0, '127.0.0.1')
    await once(slow, 'listening')
    const before = createForwarder((slow.address() as AddressInfo).port, {
      tokenFile: '/none',
      tokenKeys: [],
      openPaths: ['/slow'],
    }).listen(0, '127.0.0.1')
    await once(before, 'listening')
    const leave = new AbortController()
    const address = `http://127.0.0.1:${(before.address() as AddressInfo).port}/slow`
    const answer = await fetch(address, { signal: leave.signal })
    const { value } = await present(answer.body).getReader().read()
    expect(Buffer.from(present(value)).toString()).toBe('first')
    leave.abort()
    await left.promise
    for (const server of [before, slow]) server.close().closeAllConnections()
  })

  test('answers 502 while the gateway does not listen', async () => {
    const idle = createForwarder(1, {
      tokenFile: join(folder, 'config.json'),
      tokenKeys: ['gateway', 'token'],
      openPaths: ['/healthz'],
    })
    idle.listen(0, '127.0.0.1')
    await once(idle, 'listening')
    const { port } = idle.address() as AddressInfo
    expect((await fetch(`http://127.0.0.1:${port}/healthz`)).status).toBe(502)
    const signal = AbortSignal.timeout(5000)
    await expect(
      connectGateway({ kind: 'tcp', host: '127.0.0.1', port }, token, { signal, timeoutMs: 2000 }),
    ).rejects.toThrow(GatewayUnreachable)
    idle.close()
    idle.closeAllConnections()
  })
})
