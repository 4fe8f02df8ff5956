import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { afterEach, describe, expect, test } from 'vitest'
import { type WebSocket, WebSocketServer } from 'ws'
import { connectGateway, type GatewayClient } from '#openclaw/gateway.ts'
import { watchTurns } from '../support/longest-turn.ts'

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
