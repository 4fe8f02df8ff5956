import { fork } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { afterAll, afterEach, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { WebSocket } from 'ws'
import { createDb, type Db } from '#database/client.ts'
import { aliveSeconds, beat, beatEveryMs } from '#database/processes.ts'
import { createTurnLines, deleteStaleLines, maxTurnsInLine } from '#turns/line.ts'
import { defaultTurnTimeouts, Turn } from '#turns/turn.ts'
import { present } from '../../support/present.ts'
import { processFacts } from '../../support/process-facts.ts'
import { expectWholeStream, readEvents } from '../../support/response-schemas.ts'
import {
  type Answer,
  answerFailed,
  answerJson,
  answerStream,
  responseObject,
  sse,
  startStubGateway,
  wholeStream,
} from '../../support/stub-responses-gateway.ts'
import { openProxy } from '../../support/tcp-proxy.ts'
import { cloneDatabase } from '../../support/test-database.ts'
import type { HolderOptions } from '../../support/turn-holder.ts'
import { startTurnApi, type TurnRouteDeps } from '../../support/turn-routes.ts'
import { until } from '../../support/until.ts'

const timeouts = { ...defaultTurnTimeouts, graceMs: 200 }
const organizationId = randomUUID()
const database = await cloneDatabase()
const gateway = await startStubGateway(() => {})
await database.pool.query("INSERT INTO organizations (id, name, subscription_tier) VALUES ($1, 'Acme', 'whale')", [
  organizationId,
])

/** An API process, but for the process. */
function startApi({ db = database.db, turnTimeouts = timeouts }: Partial<TurnRouteDeps> = {}) {
  const { endpoint } = gateway
  const findGateway: TurnRouteDeps['findGateway'] = async () => ({
    organizationId,
    endpoint,
    token: 't',
    provider: 'openai',
    release: 'v1',
    model: 'gpt-4o',
    unlistedModels: [],
    asks: false,
  })
  return startTurnApi(organizationId, { db, findGateway, turnTimeouts })
}

const one = await startApi()
const two = await startApi()
let instanceId: string

beforeEach(async () => {
  gateway.received.length = 0
  gateway.hasBegun = true
  gateway.answer = () => {} // a test ends each turn itself
  instanceId = randomUUID()
  await database.pool.query(
    `INSERT INTO instances
       (id, organization_id, name, model_provider, sandbox_driver, openclaw_version, sealed_token, desired_state)
     VALUES ($1, $2, 'x', 'openai', 'fake', 'v1', '', 'running')`,
    [instanceId, organizationId],
  )
})
afterEach(() => {
  for (const { response } of gateway.received) response.destroy()
})
afterAll(async () => {
  await Promise.all([one.app.close(), two.app.close()])
  await gateway.close()
  await database.drop()
})

const post = (input: string, { url = one.url, stream = false, signal }: PostOptions = {}) =>
  fetch(`${url}/v1/instances/${instanceId}/responses`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ model: 'openclaw', input, stream }),
    ...(signal && { signal }),
  })
interface PostOptions {
  url?: string
  stream?: boolean
  signal?: AbortSignal
}

async function turnsInLine(): Promise<string[]> {
  const { rows } = await database.pool.query('SELECT turns FROM turn_lines WHERE instance_id = $1', [instanceId])
  return rows[0]?.turns ?? []
}
const untilInLine = (count: number) =>
  until(`${count} turns in line`, async () => (await turnsInLine()).length === count)
const asked = () => gateway.received.map(({ body }) => body.input)
const untilAsked = (input: string) => until(`the agent is asked ${input}`, () => asked().includes(input))

const succeed: Answer = (response, received) =>
  (received.body.stream ? answerStream(wholeStream) : answerJson(200, responseObject()))(response, received)

/** Ends the turns that the agent was asked. */
function end(): void {
  for (const received of gateway.received) {
    if (!received.response.headersSent) succeed(received.response, received)
  }
}

/** Beats for a process until the test ends. */
async function beatAlways(finished = onTestFinished) {
  const facts = processFacts(randomUUID())
  await beat(database.db, facts)
  const timer = setInterval(() => void beat(database.db, facts), beatEveryMs)
  finished(() => clearInterval(timer))
  return facts
}

const newLines = (db = database.db, finished = onTestFinished) => {
  const lines = createTurnLines(db, randomUUID())
  finished(() => lines.close())
  return lines
}
/** The database behind a proxy that can cut it off. */
async function openProxied() {
  const { host = '', port = 5432 } = database.connection
  const proxy = await openProxy(host.startsWith('/') ? { path: join(host, `.s.PGSQL.${port}`) } : { host, port })
  const to = { host: proxy.host, port: proxy.port, connectionTimeoutMillis: 5000 }
  const pool = new pg.Pool({ ...database.connection, ...to })
  pool.on('error', () => {})
  const close = async () => {
    await pool.end()
    await proxy.close()
  }
  return { db: createDb(pool), proxy, close }
}
const newSession = () => ({ instanceId: randomUUID(), sessionKey: 'main' })
const newTurn = () => new Turn(timeouts)

test('the turns of a session are asked one after the other, in their order, over all processes', async () => {
  const answers: Promise<Response>[] = []
  for (let turn = 1; turn <= 8; turn += 1) {
    answers.push(post(`turn ${turn}`, { url: turn % 2 ? one.url : two.url, stream: turn > 4 }))
    await untilInLine(turn)
  }
  for (let turn = 1; turn <= 8; turn += 1) {
    await untilAsked(`turn ${turn}`)
    expect(gateway.received).toHaveLength(turn)
    end()
  }
  for (const answer of await Promise.all(answers)) {
    expect(answer.status).toBe(200)
    const isStream = answer.headers.get('content-type')?.startsWith('text/event-stream')
    expect(await answer.text()).toContain(isStream ? 'event: response.completed' : '"completed"')
  }
  await untilInLine(0)
})

test('many turns at once in two processes are all asked, never two at a time', async () => {
  let running = 0
  let most = 0
  gateway.answer = (response, received) => {
    running += 1
    most = Math.max(most, running)
    setTimeout(() => {
      running -= 1
      answerJson(200, responseObject())(response, received)
    }, 2)
  }
  const answers = await Promise.all(
    Array.from({ length: 40 }, (_, turn) => post(`${turn}`, { url: turn % 2 ? one.url : two.url })),
  )
  expect(answers.map(({ status }) => status)).toEqual(answers.map(() => 200))
  expect(most).toBe(1)
})

test('turns of other sessions and of chat completions do not wait', async () => {
  const first = post('first')
  await untilAsked('first')
  const init = { method: 'POST', headers: { 'content-type': 'application/json' } }
  const base = `${two.url}/v1/instances/${instanceId}`
  const other = fetch(`${base}/session/other/responses`, {
    ...init,
    body: JSON.stringify({ model: 'openclaw', input: 'other' }),
  })
  await untilAsked('other')
  end()
  const messages = [{ role: 'user', content: 'hello' }]
  const chats = [1, 2].map(() =>
    fetch(`${base}/chat/completions`, { ...init, body: JSON.stringify({ model: 'openclaw', messages }) }),
  )
  await until('both chat completions are asked', () => gateway.received.length === 4)
  end()
  for (const answer of await Promise.all([first, other, ...chats])) expect(answer.status).toBe(200)
})

test('a stream that waits begins with `queued`, and its response is in progress meanwhile', async () => {
  const first = post('first')
  await untilAsked('first')
  const second = await post('second', { stream: true, url: two.url })
  expect(second.headers.get('content-type')).toContain('text/event-stream')
  const reader = present(second.body).pipeThrough(new TextDecoderStream()).getReader()
  const head = present((await reader.read()).value)
  const { events } = readEvents(head)
  expect(events.map(({ type }) => type)).toEqual(['response.created', 'response.queued'])
  expect(events).toMatchObject([{ response: { status: 'queued' } }, { response: { status: 'queued' } }])
  expect(asked()).toEqual(['first'])
  end()
  await untilAsked('second')
  end()
  let text = head
  for (let read = await reader.read(); !read.done; read = await reader.read()) text += read.value
  const whole = readEvents(text)
  expectWholeStream(whole.events)
  expect(whole.isDone).toBe(true)
  expect((await first).status).toBe(200)
})

test('a WebSocket waits too', async () => {
  const first = post('first')
  await untilAsked('first')
  const socket = new WebSocket(`${two.url.replace('http', 'ws')}/v1/instances/${instanceId}/responses`)
  onTestFinished(() => socket.terminate())
  const types: string[] = []
  socket.on('message', (data) => types.push(JSON.parse(String(data)).type))
  await once(socket, 'open')
  socket.send(JSON.stringify({ type: 'response.create', model: 'openclaw', input: 'second' }))
  await until('it is queued', () => types.includes('response.queued'))
  end()
  await untilAsked('second')
  end()
  await until('it is completed', () => types.includes('response.completed'))
  expect((await first).status).toBe(200)
})

test('a client that leaves while its turn waits leaves the line', async () => {
  const first = post('first')
  await untilAsked('first')
  const leaves = new AbortController()
  const second = post('second', { signal: leaves.signal })
  await untilInLine(2)
  const third = post('third')
  await untilInLine(3)
  leaves.abort()
  await expect(second).rejects.toThrow()
  await untilInLine(2)
  end()
  await untilAsked('third')
  end()
  expect((await third).status).toBe(200)
  expect((await first).status).toBe(200)
  expect(asked()).toEqual(['first', 'third'])
})

test('a turn that is cancelled while it waits is not asked', async () => {
  const first = post('first')
  await untilAsked('first')
  const second = await post('second', { stream: true })
  const reader = present(second.body).pipeThrough(new TextDecoderStream()).getReader()
  const head = present((await reader.read()).value)
  const id = /resp_[0-9a-f]+/.exec(head)?.[0]
  const path = `${two.url}/v1/instances/${instanceId}/responses/${id}`
  await until('its row', async () => (await fetch(path)).status === 200)
  expect((await fetch(`${path}/cancel`, { method: 'POST' })).status).toBe(200)
  let text = head
  for (let read = await reader.read(); !read.done; read = await reader.read()) text += read.value
  const last = readEvents(text).events.at(-1)
  expect(last).toMatchObject({ type: 'response.incomplete', response: { status: 'cancelled' } })
  end()
  expect((await first).status).toBe(200)
  expect(asked()).toEqual(['first'])
})

test('a turn that comes when the line is full is a 429', async () => {
  const lines = newLines()
  const session = { instanceId, sessionKey: 'main' }
  const enter = () => lines.enter(newTurn(), session)
  const places = await Promise.all(Array.from({ length: maxTurnsInLine }, enter))
  const refused = await post('one too many')
  expect(refused.status).toBe(429)
  expect(refused.headers.get('retry-after')).toBe('5')
  expect(await refused.json()).toMatchObject({
    detail: expect.stringContaining('100 turns of this session'),
    error: { code: 'session_busy' },
  })
  places[50]?.leave()
  await untilInLine(maxTurnsInLine - 1)
  const next = post('the next')
  await untilInLine(maxTurnsInLine)
  for (const { leave } of places) leave()
  await untilAsked('the next')
  end()
  expect((await next).status).toBe(200)
})

test('the time that a turn waits counts for its limit, and the failure says that it did not begin', async () => {
  const quick = await startApi({ turnTimeouts: { ...timeouts, limitMs: 600 } })
  onTestFinished(() => quick.app.close())
  const first = post('first')
  await untilAsked('first')
  const second = await post('second', { url: quick.url })
  expect(second.status).toBe(504)
  expect(second.headers.get('x-should-retry')).toBeNull()
  expect(await second.json()).toMatchObject({
    detail: { error: expect.stringContaining('before it began') },
    error: { code: 'turn_waited_too_long' },
  })
  await untilInLine(1)
  end()
  expect((await first).status).toBe(200)
})

test('a server that closes answers turns that wait, and others go on', async () => {
  const closing = await startApi()
  const first = post('first', { url: closing.url })
  await untilAsked('first')
  const second = post('second', { url: closing.url })
  await untilInLine(2)
  const third = post('third')
  await untilInLine(3)
  await closing.app.close()
  expect((await first).status).toBe(503)
  expect((await second).status).toBe(503)
  await untilAsked('third')
  end()
  expect((await third).status).toBe(200)
})

test('turns that wait enter again when the lines were lost', async () => {
  const first = post('first')
  await untilAsked('first')
  const second = post('second')
  await untilInLine(2)
  await database.pool.query('TRUNCATE turn_lines, processes')
  await untilAsked('second')
  end()
  expect((await first).status).toBe(200)
  expect((await second).status).toBe(200)
})

test('without the database turns are answered with 503, and those that run leave once it is back', async () => {
  const { db, proxy, close } = await openProxied()
  const cut = await startApi({ db })
  onTestFinished(async () => {
    await cut.app.close()
    await close()
  })
  const first = post('first', { url: cut.url })
  await untilAsked('first')
  const second = post('second', { url: cut.url })
  await untilInLine(2)
  proxy.cut()
  const refused = await post('third', { url: cut.url })
  expect(refused.status).toBe(503)
  expect(refused.headers.get('retry-after')).toBe('1')
  end()
  expect((await first).status).toBe(200)
  proxy.heal()
  await untilAsked('second')
  end()
  expect((await second).status).toBe(200)
  await untilInLine(0)
})

test('what lost processes left is deleted', async () => {
  await database.pool.query(
    `INSERT INTO turn_lines VALUES ($1, 'old', '{}', now() - interval '2 hours'), ($1, 'new', '{}', now())`,
    [instanceId],
  )
  await deleteStaleLines(database.db)
  const { rows } = await database.pool.query('SELECT session_key FROM turn_lines WHERE instance_id = $1', [instanceId])
  expect(rows).toEqual([{ session_key: 'new' }])
})

const failPlain = answerFailed(500, 'api_error', 'internal error')
const error = { code: 'api_error', message: 'internal error' }
const failStream = answerStream(
  sse({ type: 'response.failed', response: responseObject({ status: 'failed', output: [], error }) }),
)
/** Answers the first of some requests like this, and all further ones with success. */
const firstFails = (times: number) => {
  gateway.answer = (response, received) => {
    const fail = received.body.stream ? failStream : failPlain
    return gateway.received.length <= times ? fail(response, received) : succeed(response, received)
  }
}

test('a turn that OpenClaw did not begin is sent once more', async () => {
  gateway.hasBegun = false
  firstFails(1)
  const plain = await post('plain')
  expect(plain.status).toBe(200)
  expect(asked()).toEqual(['plain', 'plain'])
  gateway.received.length = 0
  const streamed = await post('streamed', { stream: true })
  const { events } = readEvents(await streamed.text())
  expectWholeStream(events)
  expect(events.at(-1)?.type).toBe('response.completed')
  expect(asked()).toEqual(['streamed', 'streamed'])
})

test('a turn that meets a suspended gateway is sent once more, after the pause that it asks for', async () => {
  const code = 'gateway_unavailable'
  const suspended = answerJson(503, { error: { message: 'suspending', type: 'service_unavailable', code } })
  gateway.answer = (response, received) =>
    gateway.received.length === 1 ? suspended(response, received) : succeed(response, received)
  expect((await post('suspended')).status).toBe(200)
  expect(asked()).toEqual(['suspended', 'suspended'])
  gateway.answer = suspended
  expect((await post('stays')).status).toBe(502)
  expect(asked()).toEqual(['suspended', 'suspended', 'stays', 'stays'])
})

test('a turn that OpenClaw does not begin twice is a 503 that may be repeated', async () => {
  gateway.hasBegun = false
  firstFails(2)
  const plain = await post('plain')
  expect(plain.status).toBe(503)
  expect(plain.headers.get('retry-after')).toBe('1')
  expect(plain.headers.get('x-should-retry')).toBeNull()
  expect(await plain.json()).toMatchObject({ detail: expect.stringContaining('The model was not asked') })
  expect(asked()).toHaveLength(2)
  gateway.received.length = 0
  const last = readEvents(await (await post('streamed', { stream: true })).text()).events.at(-1)
  expect(last).toMatchObject({ type: 'response.failed', response: { error: { code: 'turn_not_begun' } } })
  expect(asked()).toHaveLength(2)
})

test.each([true, 'refused'] as const)('a turn that may have begun is not repeated: %s', async (hasBegun) => {
  gateway.hasBegun = hasBegun
  firstFails(1)
  const plain = await post('plain')
  expect(plain.status).toBe(502)
  expect(plain.headers.get('x-should-retry')).toBe('false')
  gateway.received.length = 0
  expect(await (await post('streamed', { stream: true })).text()).toContain('event: response.failed')
  expect(asked()).toEqual(['streamed'])
})

test('a stream that has said something, or failed for another reason, is not repeated', async () => {
  gateway.hasBegun = false
  const failed = (message: string) => responseObject({ status: 'failed', output: [], error: { ...error, message } })
  const said = wholeStream.slice(0, wholeStream.indexOf('event: response.output_text.done'))
  gateway.answer = answerStream(said + sse({ type: 'response.failed', response: failed('internal error') }))
  expect(await (await post('said', { stream: true })).text()).toContain('event: response.failed')
  gateway.answer = answerStream(sse({ type: 'response.failed', response: failed('upstream provider error') }))
  expect(await (await post('other', { stream: true })).text()).toContain('event: response.failed')
  expect(asked()).toEqual(['said', 'other'])
})

// Slow, because they wait until processes are taken for lost.
describe.concurrent('processes that come and go', () => {
  test('the turns of a process that is killed leave the line once it counts as dead', async ({ onTestFinished }) => {
    // Another process beats, so that the death of the holder is not taken for an outage of the database.
    const { id } = await beatAlways(onTestFinished)
    await database.pool.query("UPDATE processes SET since = now() - interval '1 hour' WHERE id = $1", [id])
    const session = newSession()
    const holder = fork(new URL('../../support/turn-holder.ts', import.meta.url))
    onTestFinished(() => void holder.kill('SIGKILL'))
    holder.send({ connection: database.connection, session } satisfies HolderOptions)
    await once(holder, 'message')
    const { begun, mustWait } = await newLines(database.db, onTestFinished).enter(newTurn(), session)
    expect(mustWait).toBe(true)
    const longerThanWithoutBeats = sleep((aliveSeconds + 1) * 1000, 'still waits')
    expect(await Promise.race([begun, longerThanWithoutBeats])).toBe('still waits')
    holder.kill('SIGKILL')
    const killedAt = performance.now()
    await begun
    expect(performance.now() - killedAt).toBeLessThan((aliveSeconds + 3) * 1000)
  })

  test('turns that wait are answered when the database stays away', async ({ onTestFinished }) => {
    const { db, proxy, close } = await openProxied()
    const lines = createTurnLines(db, randomUUID())
    onTestFinished(async () => {
      await lines.close()
      await close()
    })
    const session = newSession()
    await lines.enter(newTurn(), session)
    const { begun, mustWait } = await lines.enter(newTurn(), session)
    expect(mustWait).toBe(true)
    proxy.cut()
    await expect(begun).rejects.toMatchObject({ code: 'unavailable' })
    await expect(lines.enter(newTurn(), session)).rejects.toMatchObject({ code: 'unavailable' })
  })

  test('a turn takes two statements, one to enter and one to leave, which turns at the same moment share', async ({
    onTestFinished,
  }) => {
    const names: string[] = []
    const query = (asked: { name: string; text: string }) => {
      names.push(asked.name)
      return database.db.$client.query(asked)
    }
    const { db } = database
    const spied = { ...db, $client: { ...db.$client, query } } as unknown as Db
    const lines = newLines(spied, onTestFinished)
    const places = await Promise.all(Array.from({ length: 20 }, () => lines.enter(newTurn(), newSession())))
    for (const { begun, leave } of places) {
      await begun
      leave()
    }
    await lines.close()
    expect(names).toEqual(['enter_lines', 'leave_lines'])
  })
})
