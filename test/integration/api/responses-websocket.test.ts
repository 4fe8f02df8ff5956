import { once } from 'node:events'
import { request as httpRequest, type IncomingMessage } from 'node:http'
import { connect, type Socket } from 'node:net'
import { json } from 'node:stream/consumers'
import { setTimeout as wait } from 'node:timers/promises'
import OpenAI from 'openai'
import { ResponsesWS } from 'openai/resources/responses/ws'
import { afterAll, afterEach, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { WebSocket } from 'ws'
import type { StreamEvent } from '#api/responses/format/event-schemas.ts'
import { newApiKey } from '#http/api-key.ts'
import { openStreams } from '#platform/metrics.ts'
import { defaultTurnTimeouts } from '#turns/turn.ts'
import { errorBody, requireError } from '../../support/error-body.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { countInTurns } from '../../support/longest-turn.ts'
import { present } from '../../support/present.ts'
import { expectWholeStream } from '../../support/response-schemas.ts'
import { watchStalls } from '../../support/stalls.ts'
import {
  type Answer,
  answerFailed,
  answerStream,
  delta,
  responseObject,
  sse,
  startStream,
  startStubGateway,
  streamHead,
  wholeStream,
} from '../../support/stub-responses-gateway.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

// biome-ignore lint/suspicious/noExplicitAny: a test reads what it expects
type Frame = any

const echo: Answer = answerStream(wholeStream)
const hang: Answer = (response) => startStream(response).write(streamHead + delta('so far'))
let id: string

const gateway = await startStubGateway(echo)
const chowder = await openTestChowder({ sandboxes: new FakeDriver() })
const url = await chowder.app.listen({ port: 0, host: '127.0.0.1' })
const { key } = await chowder.signUp()
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})
beforeEach(async () => {
  gateway.answer = echo
  gateway.received.length = 0
  id = await newInstance(key)
})
afterEach(() => {
  for (const { response } of gateway.received) response.destroy()
})

const newInstance = (as: string) => chowder.createReady(as, gateway.endpoint)

const pathOf = (instance = id, session?: string) =>
  `/v1/instances/${instance}${session === undefined ? '' : `/session/${encodeURIComponent(session)}`}/responses`

/** A connection with the frames that it received. */
async function open(path = pathOf(), as = key, at = url) {
  const socket = new WebSocket(at.replace('http', 'ws') + path, { headers: { authorization: `Bearer ${as}` } })
  onTestFinished(() => socket.terminate())
  const frames: Frame[] = []
  socket.on('message', (data) => frames.push(JSON.parse(String(data))))
  const closed = once(socket, 'close').then(([code]) => code as number)
  closed.catch(() => {})
  await once(socket, 'open')
  return {
    socket,
    frames,
    closed,
    say: (over: object = {}) =>
      socket.send(JSON.stringify({ type: 'response.create', model: 'openclaw', input: 'hello', ...over })),
    /** The events of the next turn. */
    async turn(timeoutMs = 20_000): Promise<StreamEvent[]> {
      const ends = (frame: Frame) => /^response\.(completed|incomplete|failed)$|^error$/.test(frame.type)
      await until('the turn to end', () => frames.some(ends), timeoutMs)
      const events = frames.splice(0, frames.findIndex(ends) + 1)
      for (const { type, status, error } of events) if (type === 'error') requireError(status, error)
      return events
    },
  }
}
/** A connection with the server's side of it. */
async function openBoth() {
  const connected = once(chowder.app.server, 'connection')
  const opened = await open()
  return { ...opened, server: (await connected)[0] as Socket }
}
const webSocketOf = (server: Socket): WebSocket => {
  const key = Object.getOwnPropertySymbols(server).find(({ description }) => description === 'websocket')
  return server[key as never]
}
/** The status of a refused upgrade. */
async function refusal(path: string, headers: Record<string, string>): Promise<number> {
  const socket = new WebSocket(url.replace('http', 'ws') + path, { headers })
  socket.on('error', () => {})
  const [, response] = await once(socket, 'unexpected-response')
  socket.terminate()
  return response.statusCode
}
const bearer = (as: string) => ({ authorization: `Bearer ${as}` })

test('a handshake that no library sends is refused in the shape of all errors', async () => {
  const headers = { ...bearer(key), connection: 'upgrade', upgrade: 'websocket', 'sec-websocket-version': '12' }
  const request = httpRequest(url + pathOf(), { headers: { ...headers, 'sec-websocket-key': 'short' } }).end()
  const [answer] = (await once(request, 'response')) as [IncomingMessage]
  expect([answer.statusCode, await json(answer)]).toEqual([
    400,
    errorBody('malformed_request', expect.stringContaining('Sec-WebSocket-Version: 13')),
  ])
})

describe('a connection', () => {
  test('runs turns one after the other, each with a complete response', async () => {
    const { say, turn, frames } = await open()
    say()
    const first = await turn()
    expectWholeStream(first)
    say({ previous_response_id: (first[0] as Frame).response.id, stream: true, background: false })
    const second = await turn()
    expectWholeStream(second)
    expect((second[0] as Frame).response.previous_response_id).toBe((first[0] as Frame).response.id)
    expect(gateway.received).toHaveLength(2)
    expect(frames).toEqual([])
  })

  test('uses the session of its path', async () => {
    const { say, turn } = await open(pathOf(id, 'user 42/ü'))
    say()
    await turn()
    expect(gateway.received[0]?.headers['x-openclaw-session-key']).toBe(`s-${Buffer.from('user 42/ü').toString('hex')}`)
  })

  test('queues turns that arrive together and does not mix them', async () => {
    const { say, turn } = await open()
    for (const input of ['one', 'two', 'three']) say({ input })
    for (let count = 0; count < 3; count++) expectWholeStream(await turn())
    expect(gateway.received.map(({ body }) => body.input)).toEqual(['one', 'two', 'three'])
  })

  test('queues at most four turns', async () => {
    gateway.answer = hang
    const { say, frames } = await open()
    say()
    await until('the turn', () => gateway.received.length === 1)
    for (let count = 0; count < 6; count++) say()
    await until('the refusals', () => frames.filter(({ type }) => type === 'error').length === 2)
    expect(frames.at(-1)).toMatchObject({ type: 'error', status: 429, error: { type: 'rate_limit_error' } })
  })

  test('stays open after a failure before a turn and after a failed turn', async () => {
    const { say, turn } = await open()
    gateway.answer = answerFailed(400, 'invalid_request_error', 'no')
    say()
    expect(await turn()).toMatchObject([{ type: 'error', status: 400, error: { message: 'no' } }])
    gateway.answer = answerStream(streamHead + delta('a'))
    say()
    const failed = await turn()
    expectWholeStream(failed)
    expect(failed.at(-1)).toMatchObject({
      type: 'response.failed',
      response: { error: { code: 'gateway_unreachable' } },
    })
    gateway.answer = answerFailed(529, 'api_error', 'upstream provider overloaded')
    say()
    expect(await turn()).toMatchObject([{ type: 'error', status: 502, error: { code: 'provider_error' } }])
    gateway.answer = echo
    say()
    expectWholeStream(await turn())
  })

  test('that is lost can be continued on another one', async () => {
    const lost = await open()
    lost.say()
    const [created] = await lost.turn()
    gateway.answer = hang
    lost.say({ previous_response_id: (created as Frame).response.id })
    await until('the turn', () => gateway.received.length === 2)
    lost.socket.terminate()
    await until('the turn to be ended', () => gateway.received[1]?.abortedAt !== undefined)
    gateway.answer = echo
    const next = await open()
    next.say({ previous_response_id: (created as Frame).response.id })
    expectWholeStream(await next.turn())
  })

  describe('that stores nothing', () => {
    const unstored = { store: false }
    const unknown = [{ type: 'error', status: 400, error: { code: 'previous_response_not_found' } }]
    const idOf = (events: StreamEvent[]): string => (events.at(-1) as Frame).response.id

    test('continues from its latest response, which no other connection knows', async () => {
      const { say, turn } = await open()
      say(unstored)
      const one = idOf(await turn())
      const other = await open()
      other.say({ ...unstored, previous_response_id: one })
      expect(await other.turn()).toMatchObject(unknown)
      say({ ...unstored, previous_response_id: one })
      const second = await turn()
      expectWholeStream(second)
      say({ previous_response_id: idOf(second) })
      const stored = await turn()
      expectWholeStream(stored)
      other.say({ previous_response_id: idOf(stored) })
      expectWholeStream(await other.turn())
      expect(gateway.received).toHaveLength(4)
    })

    test.each([
      ['before it begins', answerFailed(400, 'invalid_request_error', 'no'), {}],
      ['while it runs', answerStream(streamHead + delta('a')), {}],
      ['by its fields', echo, { presence_penalty: 1 }],
    ])('forgets a response after a continuation that fails %s, and goes on', async (_when, answer, fields) => {
      const { say, turn } = await open()
      say(unstored)
      const previous_response_id = idOf(await turn())
      gateway.answer = answer
      say({ ...unstored, ...fields, previous_response_id })
      expect((await turn()).at(-1)?.type).toMatch(/^error$|^response.failed$/)
      gateway.answer = echo
      say({ ...unstored, previous_response_id })
      expect(await turn()).toMatchObject(unknown)
      say(unstored)
      expectWholeStream(await turn())
    })

    test('knows a response after another turn has failed', async () => {
      const { say, turn } = await open()
      say(unstored)
      const previous_response_id = idOf(await turn())
      gateway.answer = answerFailed(400, 'invalid_request_error', 'no')
      say(unstored)
      expect(await turn()).toMatchObject([{ type: 'error' }])
      gateway.answer = echo
      say({ ...unstored, previous_response_id })
      expectWholeStream(await turn())
    })
  })

  test('works with the official OpenAI client', async () => {
    const client = new OpenAI({ baseURL: `${url}/v1/instances/${id}`, apiKey: key })
    const ws = new ResponsesWS(client)
    const types: string[] = []
    const done = new Promise<void>((resolve, reject) => {
      ws.on('event', (event) => {
        types.push(event.type)
        if (event.type === 'response.completed') resolve()
      })
      ws.on('error', reject)
    })
    ws.send({ type: 'response.create', model: 'openclaw', input: 'hello' })
    await done
    ws.close()
    expect(types).toContain('response.output_text.delta')
  })
})

describe('a frame that is not a turn', () => {
  const cases: [string, string | Buffer, object][] = [
    ['invalid JSON', 'hello', { status: 400 }],
    ['half of JSON', '{"type":"response.create"', { status: 400 }],
    ['another type', '{"type":"response.delete"}', { status: 400, error: { param: 'type' } }],
    ['a list', '[]', { status: 400 }],
    ['null', 'null', { status: 400 }],
    ['an empty frame', '', { status: 400 }],
    ['no input', '{"type":"response.create","model":"openclaw"}', { status: 422 }],
    ['half a character', '{"type":"response.create","model":"openclaw","input":"\\ud800"}', { status: 400 }],
    ['a prototype', '{"type":"response.create","__proto__":{"model":"x"}}', { status: 400 }],
    ['bytes', Buffer.from('{}'), { status: 400, error: { message: expect.stringContaining('text frames') } }],
    [
      'a stream of its own',
      '{"type":"response.create","model":"openclaw","input":"x","stream_id":"a"}',
      { status: 400, error: { param: 'stream_id' } },
    ],
    [
      'a warm-up',
      '{"type":"response.create","model":"openclaw","input":"x","generate":false}',
      { status: 400, error: { param: 'generate' } },
    ],
    [
      'a field that cannot be honoured',
      '{"type":"response.create","model":"openclaw","input":"x","background":true}',
      { status: 400, error: { param: 'background' } },
    ],
  ]
  test.each(cases)('%s is an error, and the connection stays open', async (_what, frame, expected) => {
    const { socket, say, turn } = await open()
    socket.send(frame)
    expect(await turn()).toMatchObject([{ type: 'error', ...expected }])
    say()
    expectWholeStream(await turn())
    expect(gateway.received).toHaveLength(1)
  })

  test('A2: an id of another session, instance or organization gives access to nothing', async () => {
    const other = (await chowder.signUp()).key
    const foreign = await open(pathOf(await newInstance(other)), other)
    foreign.say()
    const theirs = ((await foreign.turn())[0] as Frame).response.id
    const session = await open(pathOf(id, 'a'))
    session.say()
    const elsewhere = ((await session.turn())[0] as Frame).response.id
    gateway.received.length = 0
    const { say, turn } = await open()
    for (const [previous, code] of [
      [theirs, 'previous_response_not_found'],
      ['resp_nonsense', 'previous_response_not_found'],
      [elsewhere, 'previous_response_not_latest'],
    ]) {
      say({ previous_response_id: previous })
      expect(await turn()).toMatchObject([
        { type: 'error', status: 400, error: { code, param: 'previous_response_id', type: 'invalid_request_error' } },
      ])
    }
    expect(gateway.received).toEqual([])
  })

  test('in many fragments is one frame', async () => {
    const { socket, turn } = await open()
    const text = JSON.stringify({ type: 'response.create', model: 'openclaw', input: 'x'.repeat(1000) })
    for (let at = 0; at < text.length; at += 7) socket.send(text.slice(at, at + 7), { fin: at + 7 >= text.length })
    expectWholeStream(await turn())
    expect(gateway.received[0]?.body.input).toHaveLength(1000)
  })

  test('over 20 MB ends only its connection', async () => {
    const { socket, closed } = await open()
    socket.on('error', () => {})
    socket.send('x'.repeat(20 * 1024 * 1024 + 1))
    expect(await closed).toBeGreaterThanOrEqual(1006)
    expect((await chowder.call('GET', '/healthz')).status).toBe(200)
  })

  test.each([
    ['an unmasked frame', Buffer.from([0x81, 0x02, 0x7b, 0x7d])],
    ['a continuation of nothing', Buffer.from([0x80, 0x80, 0, 0, 0, 0])],
    ['a reserved opcode', Buffer.from([0x83, 0x80, 0, 0, 0, 0])],
    ['text that is no UTF-8', Buffer.from([0x81, 0x82, 0, 0, 0, 0, 0xc3, 0x28])],
    ['a control frame in fragments', Buffer.from([0x09, 0x80, 0, 0, 0, 0])],
    ['a length beyond all', Buffer.from([0x81, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0])],
  ])('%s ends only the connection', async (_what, bytes) => {
    const { port, hostname } = new URL(url)
    const socket = connect(Number(port), hostname)
    socket.on('error', () => {})
    socket.write(
      `GET ${pathOf()} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${key}\r\nconnection: upgrade\r\n` +
        'upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n',
    )
    const [head] = (await once(socket, 'data')) as [Buffer]
    expect(head.toString()).toMatch(/^HTTP\/1\.1 101/)
    socket.write(bytes)
    await once(socket, 'close')
    const { say, turn } = await open()
    say()
    expectWholeStream(await turn())
  })
})

describe('the permission to connect', () => {
  test('is the permission to POST to the path', async () => {
    const other = (await chowder.signUp()).key
    const issue = async (permissions: string[], instances = [id]) =>
      (await chowder.call('POST', '/v1/keys', { key, body: { name: 'k', instance_ids: instances, permissions } })).body
        .raw_key
    expect(await refusal(pathOf(), {})).toBe(401)
    expect(await refusal(pathOf(), bearer(newApiKey('organization')))).toBe(401)
    expect(await refusal(pathOf(), bearer(other))).toBe(404)
    expect(await refusal(pathOf('nonsense'), bearer(key))).toBe(404)
    expect(await refusal(pathOf(), bearer(await issue(['read', 'configure'])))).toBe(403)
    expect(await refusal(pathOf(), bearer(await issue(['interact'], [await newInstance(key)])))).toBe(403)
    expect(await refusal(pathOf(id, 'x'.repeat(201)), bearer(key))).toBe(400)
    const { say, turn } = await open(pathOf(), await issue(['interact']))
    say()
    expectWholeStream(await turn())
  })

  test('does not exist on other paths', async () => {
    for (const path of ['/healthz', '/v1/organization', `/v1/instances/${id}/responses/resp_1`]) {
      expect(await refusal(path, bearer(key))).toBeLessThanOrEqual(499)
    }
    const { status, body } = await chowder.call('GET', pathOf(), { key })
    expect({ status, body }).toMatchObject({ status: 400, body: { detail: expect.stringContaining('WebSocket') } })
  })

  test('is given for an instance that does not run, which is an error frame', async () => {
    await chowder.database.pool.query(`UPDATE instances SET desired_state = 'stopped', ready_at = NULL WHERE id = $1`, [
      id,
    ])
    const { say, turn } = await open()
    say()
    expect(await turn()).toMatchObject([{ type: 'error', status: 409 }])
  })

  test('A12: ends within 5 s after its key is revoked, with and without a turn', async () => {
    const issued = await chowder.call('POST', '/v1/keys', {
      key,
      body: { name: 'k', instance_ids: [id], permissions: ['interact'] },
    })
    gateway.answer = hang
    const [idle, busy] = [await open(pathOf(), issued.body.raw_key), await open(pathOf(), issued.body.raw_key)]
    busy.say()
    await until('the turn', () => gateway.received.length === 1)
    expect((await chowder.call('DELETE', `/v1/keys/${issued.body.id}`, { key })).status).toBe(204)
    const revokedAt = performance.now()
    const stalledMs = watchStalls()
    expect(await Promise.all([idle.closed, busy.closed])).toEqual([1008, 1008])
    expect(performance.now() - revokedAt - stalledMs()).toBeLessThan(5000)
    expect(idle.frames).toMatchObject([{ type: 'error', status: 401 }])
    expect(busy.frames.at(-1)).toMatchObject({ type: 'error', status: 401 })
    expect(busy.frames.at(-2)).toMatchObject({
      type: 'response.failed',
      response: { error: { code: 'invalid_api_key' } },
    })
    await until('the turn to be ended', () => gateway.received[0]?.abortedAt !== undefined)
  })

  test('has a rate limit that counts turns as requests', async () => {
    const limited = await openTestChowder({ sandboxes: new FakeDriver(), limits: { requestsPerMinute: 6 } })
    onTestFinished(() => limited.close())
    const at = await limited.app.listen({ port: 0, host: '127.0.0.1' })
    const own = (await limited.signUp()).key // 2 requests
    const ready = await limited.createReady(own, gateway.endpoint)
    const { socket, say, turn } = await open(pathOf(ready), own, at)
    let turns = 0
    for (; turns < 10; turns++) {
      say()
      const last = (await turn()).at(-1) as Frame
      if (last.type !== 'error') continue
      expect(last).toMatchObject({ status: 429, error: { code: 'rate_limited' } })
      break
    }
    expect(turns).toBeGreaterThan(0)
    expect(turns).toBeLessThanOrEqual(5)
    socket.send('no JSON')
    expect(await turn()).toMatchObject([{ status: 429 }])
    socket.send(Buffer.from('bytes'))
    expect(await turn()).toMatchObject([{ status: 429 }])
  })
})

describe('the end of a connection', () => {
  test('ends its turn within a second', async () => {
    gateway.answer = hang
    const { socket, say } = await open()
    say()
    await until('the turn', () => gateway.received.length === 1)
    const leftAt = performance.now()
    socket.terminate()
    await until('the turn to be ended', () => gateway.received[0]?.abortedAt !== undefined)
    expect(present(present(gateway.received[0]).abortedAt) - leftAt).toBeLessThan(3000)
  })

  test('in the middle of a long answer leaves nothing of the turn behind', async () => {
    const streams = async () => (await openStreams.get()).values[0]?.value
    const before = await streams()
    gateway.answer = (response) => startStream(response).write(streamHead + delta('x'.repeat(100_000)))
    const { socket, frames, say } = await open()
    say()
    await until('the text', () => frames.some(({ type }) => type === 'response.output_text.delta'))
    expect(await streams()).toBe(present(before) + 1)
    socket.terminate()
    await until('the stream to be over', async () => (await streams()) === before)
  })

  /** An answer of small events, larger than all buffers on the way, with less text than an answer may have. */
  const writes = 1200
  const deltas = 100
  const deltaLength = 64
  const chunk = delta('x'.repeat(deltaLength)).repeat(deltas)
  let written = 0
  const large: Answer = (response) => {
    startStream(response).write(streamHead)
    const fill = () => {
      while (written < writes) {
        written += 1
        if (!response.write(chunk)) return
      }
      response.off('drain', fill).end(sse({ type: 'response.completed', response: responseObject() }))
    }
    response.on('drain', fill)
    fill()
  }
  const sendLarge = () => {
    written = 0
    gateway.answer = large
  }
  /** Waits for some turns of the event loop, also on a busy machine. */
  const aWhile = async () => {
    for (let round = 0; round < 5; round += 1) await wait(60)
  }
  const gatewayWaits = async () => {
    const seen = written
    await aWhile()
    return seen > 0 && seen === written
  }

  test('is not due while the client reads slowly: the gateway waits, and the client gets everything', {
    timeout: 90_000,
  }, async () => {
    sendLarge()
    const { socket, server, say, turn } = await openBoth()
    const listeners = webSocketOf(server).listenerCount('close')
    socket.pause()
    say()
    await until('the gateway to wait', gatewayWaits)
    expect(written).toBeLessThan(writes)
    socket.resume()
    const got = await turn(60_000)
    expectWholeStream(got)
    expect((got.at(-1) as Frame).response.output[0].content[0].text).toHaveLength(writes * deltas * deltaLength)
    expect(webSocketOf(server).listenerCount('close')).toBe(listeners)
  })

  /** Another Chowder on the same database, with a secret key of its own, that a test closes. */
  async function openClosing(graceMs = defaultTurnTimeouts.graceMs) {
    const turnTimeouts = { ...defaultTurnTimeouts, graceMs }
    const closing = await openTestChowder({ sandboxes: new FakeDriver(), database: chowder.database, turnTimeouts })
    const at = await closing.app.listen({ port: 0, host: '127.0.0.1' })
    const own = (await closing.signUp()).key
    const ready = await closing.createReady(own, gateway.endpoint)
    return { closing, connect: () => open(pathOf(ready), own, at) }
  }

  test('comes when the server closes, also for a client that does not read', async () => {
    const { closing, connect } = await openClosing(200)
    sendLarge()
    const { socket, say } = await connect()
    socket.pause()
    say()
    await until('the gateway to wait', gatewayWaits)
    const startedAt = performance.now()
    await Promise.race([closing.close(), wait(10_000)])
    expect(performance.now() - startedAt).toBeLessThan(defaultTurnTimeouts.graceMs)
    await until('the turn to be ended', () => gateway.received[0]?.abortedAt !== undefined)
  })

  test('comes after 100 frames in a row that began no turn, of which one is worked on in a turn of the event loop', async () => {
    const { socket, server, frames, closed, turn, say } = await openBoth()
    const refused = async (count: number) => {
      for (let sent = 0; sent < count; sent += 1) socket.send('no JSON')
      for (let seen = 0; seen < count; seen += 1) expect(await turn()).toMatchObject([{ type: 'error' }])
    }
    await refused(99)
    say()
    expect((await turn()).at(-1)).toMatchObject({ type: 'response.completed' })
    await refused(99)

    const { count, end } = countInTurns()
    const webSocket = webSocketOf(server)
    webSocket.on('message', count)
    const empty = Buffer.from([0x82, 0x80, 0, 0, 0, 0])
    ;(socket as unknown as { _socket: Socket })._socket.write(Buffer.alloc(60_000 * empty.length, empty))
    expect(await closed).toBe(1008)
    expect(frames.map(({ error }) => error.code)).toEqual(['invalid_json', 'rate_limited'])
    expect(end()).toBe(1)
  })

  test('comes when the server closes, after the end of the turn', async () => {
    const { closing, connect } = await openClosing()
    gateway.answer = hang
    const [idle, busy] = [await connect(), await connect()]
    busy.say()
    await until('the turn', () => busy.frames.some(({ type }) => type === 'response.output_text.delta'))
    const startedAt = performance.now()
    await closing.close()
    expect(await Promise.all([idle.closed, busy.closed])).toEqual([1012, 1012])
    expect(performance.now() - startedAt).toBeLessThan(defaultTurnTimeouts.graceMs)
    expect(busy.frames.at(-2)).toMatchObject({
      type: 'response.failed',
      response: { error: { code: 'shutting_down' } },
    })
    expect(busy.frames.at(-1)).toMatchObject({ type: 'error', status: 503 })
  })
})
