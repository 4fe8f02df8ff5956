import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { pino } from 'pino'
import { afterEach, describe, expect, test, vi } from 'vitest'
import { type WebSocket, WebSocketServer } from 'ws'
import { connectGateway, type GatewayClient } from '#openclaw/gateway/gateway.ts'
import { ReceivedFrames } from '#openclaw/gateway/gateway-frames.ts'
import { createTurnRunner } from '#turns/runner.ts'
import { defaultTurnTimeouts } from '#turns/turn.ts'
import { countInTurns, watchTurns } from '../../support/longest-turn.ts'
import { type Answer, delta, startStream, startStubGateway } from '../../support/stub-responses-gateway.ts'
import { runnerDeps } from '../../support/turn-routes.ts'

const mebibyte = 1024 * 1024
const mostMs = 100
const signal = new AbortController().signal

let server: WebSocketServer | undefined
let client: GatewayClient | undefined
afterEach(() => {
  client?.close()
  for (const socket of server?.clients ?? []) socket.terminate()
  server?.close()
})

/** Connects to a gateway that lets every client in, and does this for each call. */
async function connectTo(answer: (socket: WebSocket, id: string) => void): Promise<GatewayClient> {
  const opened = new WebSocketServer({ port: 0, host: '127.0.0.1' })
  server = opened
  opened.on('connection', (socket) => {
    socket.send(JSON.stringify({ type: 'event', event: 'connect.challenge', payload: {} }))
    socket.on('message', (data) => {
      const { id, method } = JSON.parse(String(data))
      if (method === 'connect') socket.send(JSON.stringify({ type: 'res', id, ok: true, payload: {} }))
      else answer(socket, id)
    })
  })
  await once(opened, 'listening')
  const { port } = opened.address() as AddressInfo
  client = await connectGateway({ kind: 'tcp', host: '127.0.0.1', port }, 'token', { signal, timeoutMs: 20_000 })
  return client
}

const frame = (id: string, payload: string) => Buffer.from(`{"type":"res","id":"${id}","ok":true,"payload":${payload}}`)

describe('S9: a gateway that floods its connection loses it', () => {
  test.each<[string, (socket: WebSocket, id: string) => void]>([
    ['by millions of values', (socket, id) => socket.send(frame(id, `[${'{},'.repeat(1_200_000)}{}]`))],
    ['by a frame of 5 MiB', (socket, id) => socket.send(frame(id, JSON.stringify('x'.repeat(5 * mebibyte))))],
    [
      'by 65 MiB of events',
      (socket) => {
        const event = JSON.stringify({ type: 'event', event: 'x', payload: 'x'.repeat(mebibyte) })
        for (let count = 0; count < 65; count += 1) socket.send(event)
      },
    ],
    [
      'by 60,000 events',
      (socket) => {
        for (let count = 0; count < 60_000; count += 1) socket.send('{"type":"event"}')
      },
    ],
    [
      'by 60,000 pings',
      (socket) => {
        for (let count = 0; count < 60_000; count += 1) socket.ping()
      },
    ],
    [
      'by answers to no call',
      (socket) => {
        for (let count = 0; count < 60_000; count += 1) socket.send('{"type":"res","id":"9","ok":true}')
      },
    ],
  ])('%s', async (_how, flood) => {
    const gateway = await connectTo(flood)
    const longestTurn = watchTurns()
    await expect(gateway.call('channels.status', {}, { timeoutMs: 20_000 })).rejects.toMatchObject({
      name: 'GatewayUnreachable',
      message: expect.stringContaining('sent'),
      outcomeUnknown: true,
    })
    expect(longestTurn()).toBeLessThan(5 * mostMs) // also the sender's, which is in this process
    await gateway.closed
  })

  test('events are not parsed', async () => {
    const event = `{"type":"event","event":"x","payload":[${'{},'.repeat(300_000)}{}]}`
    const gateway = await connectTo((socket, id) => {
      for (let count = 0; count < 20; count += 1) socket.send(event)
      socket.send(frame(id, '"done"'))
    })
    expect(await gateway.call('channels.status')).toBe('done')
  })
})

test('the messages of a session may be a frame of 20 MiB', async () => {
  const gateway = await connectTo((socket, id) => socket.send(frame(id, JSON.stringify('x'.repeat(20 * mebibyte)))))
  const longestTurn = watchTurns()
  expect(await gateway.call('chat.history')).toHaveLength(20 * mebibyte)
  expect(longestTurn()).toBeLessThan(5 * mostMs)
  await expect(gateway.call('channels.status')).rejects.toMatchObject({ name: 'GatewayUnreachable' })
})

describe('a gateway that floods', () => {
  test('gets one frame of each connection read in a turn of the event loop', async () => {
    const gateway = await connectTo((socket) => {
      for (let count = 0; count < 5000; count += 1) socket.send('{"type":"event"}')
    })
    const { count, end } = countInTurns()
    const add = vi.spyOn(ReceivedFrames.prototype, 'add').mockImplementation(() => {
      count()
      return null
    })
    try {
      await expect(gateway.call('channels.status', {}, { timeoutMs: 1000 })).rejects.toThrow('in time')
      expect(add.mock.calls.length).toBeGreaterThan(1000)
      expect(end()).toBe(1)
    } finally {
      add.mockRestore()
    }
  })

  test('a stream with short events holds the event loop for a moment', async () => {
    const flood: Answer = (response) => {
      startStream(response)
      const write = () => {
        while (!response.destroyed && response.write(delta('x').repeat(500)));
      }
      response.on('drain', write)
      write()
    }
    const stub = await startStubGateway(flood)
    const turns = createTurnRunner(defaultTurnTimeouts, runnerDeps)
    const turn = turns.begin()
    const events = await turns.ask(turn, {
      instanceId: 'i',
      gateway: {
        organizationId: 'o',
        endpoint: stub.endpoint,
        token: 't',
        provider: 'anthropic',
        release: 'v1',
        model: 'm',
        unlistedModels: [],
        asks: false,
      },
      sessionKey: 's',
      model: 'openclaw',
      isStreamed: true,
      log: pino({ level: 'silent' }),
      body: {},
    })
    const longestTurn = watchTurns()
    let deltas = 0
    for await (const batch of events) {
      deltas += batch.length
      if (deltas > 10_000) break
    }
    expect(longestTurn()).toBeLessThan(mostMs)
    turns.finish(turn)
    await turns.close()
    await stub.close()
  })
})
