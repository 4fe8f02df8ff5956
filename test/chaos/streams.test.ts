import { once } from 'node:events'
import { readdir, readlink } from 'node:fs/promises'
import { request as httpRequest, type IncomingMessage } from 'node:http'
import { createConnection, type Socket } from 'node:net'
import { text as textOf } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, afterEach, beforeAll, describe, expect, onTestFinished, test, vi } from 'vitest'
import { FakeDriver } from '../support/fake-driver.ts'
import { present } from '../support/present.ts'
import { expectWholeStream, readEvents } from '../support/response-schemas.ts'
import {
  delta,
  responseObject,
  type StubGateway,
  sse,
  startStream,
  startStubGateway,
  streamHead,
  wholeStream,
} from '../support/stub-responses-gateway.ts'
import { openProxy, type TcpProxy } from '../support/tcp-proxy.ts'
import { openTestChowder, type TestChowder } from '../support/test-chowder.ts'
import { cloneDatabase, type TestDatabase } from '../support/test-database.ts'
import { until } from '../support/until.ts'
import { type Replica, signUp, startReplicas } from './api-replicas.ts'

vi.setConfig({ testTimeout: 300_000 })

const mebibyte = 1024 * 1024

/** Preloaded code: at SIGWINCH, which has no other use, the process collects garbage and prints its memory. */
const tellsMemory =
  "--expose-gc --import=data:text/javascript,process.on('SIGWINCH',()=>{gc();gc();const{heapUsed,external}=process.memoryUsage();console.log('held',heapUsed+external)})"

describe('streams through an API process', () => {
  let database: TestDatabase
  let started: Awaited<ReturnType<typeof startReplicas>>
  let api: Replica
  let gateway: StubGateway
  /** Between the API and the gateway. */
  let proxy: TcpProxy
  let path: string
  let headers: Record<string, string>

  beforeAll(async () => {
    database = await cloneDatabase()
    started = await startReplicas(1, database.connection, { NODE_OPTIONS: tellsMemory })
    api = present(started.replicas[0])
    gateway = await startStubGateway((response) => response.end())
    if (gateway.endpoint.kind !== 'tcp') throw new Error('the stub listens on tcp')
    proxy = await openProxy(gateway.endpoint)
    const { key } = await signUp(api)
    headers = { authorization: `Bearer ${key}`, 'content-type': 'application/json' }
    const { body } = await api.call('POST', '/v1/instances', { key, body: { name: 'agent' } })
    path = `/v1/instances/${body.id}/session`
    // As a worker writes it once the gateway is ready.
    await database.pool.query(
      'UPDATE instances SET observed_generation = generation, ready_at = now(), endpoint = $2 WHERE id = $1',
      [body.id, JSON.stringify({ kind: 'tcp', host: proxy.host, port: proxy.port })],
    )
  })
  afterAll(async () => {
    await started?.close()
    await proxy?.close()
    await gateway?.close()
    await database?.drop()
  })
  afterEach(() => {
    proxy.heal()
    for (const { response } of gateway.received) response.destroy()
    gateway.received.length = 0
  })

  /** Begins a streamed turn on a connection and in a session of its own; resolves with the head of its answer. */
  async function begin(input: string) {
    const url = `${api.url}${path}/${encodeURIComponent(input)}/responses`
    const request = httpRequest(url, { method: 'POST', headers, agent: false })
    request.on('error', () => {})
    request.end(JSON.stringify({ model: 'openclaw', input, stream: true }))
    const [response] = (await once(request, 'response')) as [IncomingMessage]
    response.on('error', () => {})
    return { response, leave: () => void request.destroy() }
  }

  /** The API process's memory after a garbage collection, in bytes, and its sockets. */
  async function footprint(): Promise<{ memory: number; sockets: number }> {
    const reports = () => api.output().match(/^held \d+$/gm) ?? []
    const before = reports().length
    process.kill(api.pid, 'SIGWINCH')
    const line = await until('the API to print its memory', () => reports()[before])
    const folder = `/proc/${api.pid}/fd`
    const links = await Promise.all((await readdir(folder)).map((fd) => readlink(`${folder}/${fd}`).catch(() => '')))
    return {
      memory: Number(line.slice('held '.length)),
      sockets: links.filter((link) => link.startsWith('socket:')).length,
    }
  }

  const allAborted = () => gateway.received.every(({ abortedAt }) => abortedAt !== undefined)

  test('F17: when 1,000 clients disconnect in the middle, each turn ends within a second, and no memory or socket is left', async () => {
    const leaves = 1000
    const atOnce = 20
    const bytes = mebibyte / 2
    const large = delta('x'.repeat(bytes))
    gateway.answer = (response) => void startStream(response).write(streamHead + large)
    const leftAt = new Map<unknown, number>()
    const leave = async (input: string) => {
      const { response, leave } = await begin(input)
      await once(response, 'data')
      leftAt.set(input, performance.now())
      leave()
    }
    const leaveInTurns = async (what: string, count: number) => {
      for (let index = 0; index < count; index += atOnce)
        await Promise.all(Array.from({ length: atOnce }, (_, place) => leave(`${what} ${index + place}`)))
      await until('the turns to be ended', allAborted)
      await until('the connections to be closed', async () => (await gateway.connections()) === 0)
    }
    await leaveInTurns('before', 200)
    const before = await footprint()
    gateway.received.length = 0
    await leaveInTurns('leave', leaves)
    const took = gateway.received
      .map(({ abortedAt = 0, body }) => abortedAt - present(leftAt.get(body.input)))
      .sort((one, other) => one - other)
    expect(took).toHaveLength(leaves)
    // A pause of this machine's may hold up some.
    expect(took[0.9 * leaves]).toBeLessThan(1000)
    expect(took.at(-1)).toBeLessThan(10_000)
    const after = await footprint()
    console.info(`ended within ${Math.round(present(took.at(-1)))} ms`, before, after)
    expect(after.sockets).toBeLessThanOrEqual(before.sockets + 5)
    // Held on to, what was under way would be fifteen times as much.
    expect(after.memory - before.memory).toBeLessThan(32 * mebibyte)
    expect(api.output().split('\n').filter((line) => line.startsWith('{') && ['error', 'fatal'].includes(JSON.parse(line).level))).toEqual([]) // biome-ignore format: short
    gateway.answer = (response) => void startStream(response).end(wholeStream)
    const { events, isDone } = readEvents(await textOf((await begin('afterwards')).response))
    expectWholeStream(events)
    expect({ isDone, last: events.at(-1)?.type }).toEqual({ isDone: true, last: 'response.completed' })
  })

  const expectBroken = (text: string, code: string) => {
    const { events } = readEvents(text)
    expectWholeStream(events)
    expect(events).toContainEqual(expect.objectContaining({ type: 'response.output_text.delta', delta: 'a' }))
    expect(events.at(-1)).toMatchObject({
      type: 'response.failed',
      response: { status: 'failed', error: { code } },
    })
  }

  test('F18: streams whose gateway is cut off all end with response.failed, and none looks complete', async () => {
    gateway.answer = (response) => void startStream(response).write(streamHead + delta('a'))
    const streams = await Promise.all(Array.from({ length: 50 }, (_, index) => begin(`cut ${index}`)))
    const texts = streams.map(() => '')
    const ends = streams.map(async ({ response }, index) => {
      for await (const chunk of response.setEncoding('utf8')) texts[index] += chunk
    })
    await until('their text to have come', () => texts.every((text) => text.includes('"delta":"a"')))
    proxy.cut()
    await Promise.all(ends)
    for (const text of texts) expectBroken(text, 'gateway_unreachable')
  })

  const final = sse({ type: 'response.completed', response: responseObject() })

  test.each([
    ['in the middle of an event', delta('b').slice(0, -20)],
    ['in the middle of the final event', final.slice(0, -20)],
    ['before the last line break of the final event', final.slice(0, -1)],
  ])('F18: a stream that ends %s ends with response.failed', async (_where, end) => {
    gateway.answer = (response) => void startStream(response).end(streamHead + delta('a') + end)
    const text = await textOf((await begin('cut')).response)
    expectBroken(text, 'gateway_unreachable')
  })

  test('F19: clients that do not read slow down their gateways, cost no more memory than their text, and get all of it', async () => {
    const readers = 8
    // Small events, with little less text than an answer may have: the kernel's buffers hold few of them.
    const deltaBytes = 64
    const deltasAWrite = 100
    const chunk = delta('x'.repeat(deltaBytes)).repeat(deltasAWrite)
    const end = sse({ type: 'response.completed', response: responseObject() })
    const writes = 1200
    const written = new Map<unknown, number>()
    gateway.answer = (response, { body: { input } }) => {
      startStream(response).write(streamHead)
      let count = 0
      const fill = () => {
        while (count < writes) {
          count += 1
          written.set(input, count)
          if (!response.write(chunk)) return
        }
        response.off('drain', fill).end(end)
      }
      response.on('drain', fill)
      fill()
    }
    const before = await footprint()
    const streams = await Promise.all(Array.from({ length: readers }, (_, index) => begin(`slow ${index}`)))
    onTestFinished(() => {
      for (const { leave } of streams) leave()
    })
    const sum = () => [...written.values()].reduce((total, count) => total + count, 0)
    await until(
      'the gateways to wait',
      async () => {
        const seen = sum()
        await sleep(500)
        return sum() === seen
      },
      20_000,
    )
    const during = await footprint()
    console.info(`${Math.round((100 * sum()) / readers / writes)} % of each were sent`, before, during)
    // Beyond what the kernel's buffers take, which of one connection may be more, nothing is read.
    expect(sum() / readers).toBeLessThan(writes * 0.6)
    expect(Math.max(...written.values())).toBeLessThan(writes)
    // The text stays in memory, because the last events repeat it.
    const textBytes = sum() * deltasAWrite * deltaBytes
    expect(during.memory - before.memory).toBeLessThan(textBytes + 32 * mebibyte)
    // One after the other: at its end an answer is told whole, several times over.
    for (const { response } of streams) {
      const mark = 'event: response.output_text.delta\n'
      let deltas = 0
      let tail = ''
      for await (const chunk of response as AsyncIterable<Buffer>) {
        const text = tail.slice(1 - mark.length) + chunk.toString('latin1')
        for (let at = text.indexOf(mark); at >= 0; at = text.indexOf(mark, at + 1)) deltas += 1
        tail = text.slice(-4096)
      }
      expect(deltas).toBe(writes * deltasAWrite)
      expect(tail).toMatch(/"prompt_cache_key":null\}\}\n\ndata: \[DONE\]\n\n$/)
    }
  })
})

describe('bodies that come slowly', () => {
  const bodyTimes = { whole: 10_000, linger: 500 }
  let chowder: TestChowder
  let url: URL
  let key: string

  beforeAll(async () => {
    chowder = await openTestChowder({ sandboxes: new FakeDriver(), bodyTimes })
    url = new URL(await chowder.app.listen({ port: 0, host: '127.0.0.1' }))
    key = (await chowder.signUp()).key
  })
  afterAll(() => chowder?.close())

  test('F19: 300 senders that trickle are each ended with 408 in time, and others are served meanwhile', async () => {
    const { body } = await chowder.call('POST', '/v1/instances', { key, body: { name: 'agent' } })
    const sockets: Socket[] = []
    // A write after the answer would end the connection before that is read, so what has arrived is read first.
    const trickle = setInterval(
      () =>
        setImmediate(() => {
          for (const socket of sockets) if (socket.writable && socket.bytesRead === 0) socket.write(' ')
        }),
      100,
    )
    const startedAt = performance.now()
    const ends = Array.from({ length: 300 }, async () => {
      const socket = createConnection(Number(url.port), url.hostname)
      socket.on('error', () => {})
      socket.write(
        `POST /v1/instances/${body.id}/responses HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${key}\r\ncontent-type: application/json\r\ncontent-length: 1000000\r\n\r\n{`,
      )
      sockets.push(socket)
      return { answer: await textOf(socket), ms: performance.now() - startedAt }
    })
    try {
      const asked: number[] = []
      while (performance.now() - startedAt < bodyTimes.whole) {
        const askedAt = performance.now()
        const answer = await fetch(new URL('/v1/organization', url), { headers: { authorization: `Bearer ${key}` } })
        expect(answer.status).toBe(200)
        await answer.arrayBuffer()
        asked.push(performance.now() - askedAt)
      }
      expect(Math.max(...asked)).toBeLessThan(bodyTimes.whole / 2)
      for (const { answer, ms } of await Promise.all(ends)) {
        expect(answer).toMatch(/^HTTP\/1\.1 408 /)
        expect(ms).toBeLessThan(2 * bodyTimes.whole)
      }
    } finally {
      clearInterval(trickle)
      for (const socket of sockets) socket.destroy()
    }
    const open = () =>
      new Promise<number>((resolve, reject) =>
        chowder.app.server.getConnections((error, count) => (error ? reject(error) : resolve(count))),
      )
    // Those of the one that asked meanwhile are kept alive.
    await until('the connections to be closed', async () => (await open()) <= 5)
  })
})
