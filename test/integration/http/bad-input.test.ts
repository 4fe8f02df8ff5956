import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { type AddressInfo, connect } from 'node:net'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createBilling } from '#api/subscription/stripe.ts'
import { badRequests, largeRequests, notTheirs } from '../../support/bad-requests.ts'
import { requireErrorBody } from '../../support/error-body.ts'
import { startFakeClawHub } from '../../support/fake-clawhub.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { startFakeGateway } from '../../support/fake-gateway.ts'
import { startFakeModelProvider } from '../../support/fake-model-provider.mjs'
import { addSessions } from '../../support/fake-sessions.ts'
import { addFakeSkills } from '../../support/fake-skills.ts'
import { FakeStripe, stripeSecretKey, stripeWebhookSecret } from '../../support/fake-stripe.ts'
import { injectBriefly } from '../../support/inject-briefly.ts'
import { watchTurns } from '../../support/longest-turn.ts'
import { checkerOf, type DocumentedOperation, operationsOf, readDocument, requestOf } from '../../support/operations.ts'
import { present } from '../../support/present.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 1e9))
const megabyte = 1024 * 1024
/** The allowed growth of the heap after the first quarter of the inputs, which fills caches and compiles code. */
const growthBytes = 24 * megabyte

const bodyBytes = megabyte
const largeBodyBytes = 20 * megabyte
/** Twice what one body may hold the event loop, because the processor time of a test includes its collections. */
const mostTurnMs = 100

const document = await readDocument()
const operations = operationsOf(document)
const check = checkerOf(document)
/** The documented statuses of each operation. */
const statusesOf = new Map(operations.map(({ name, operation }) => [name, new Set(Object.keys(operation.responses))]))
const errorSchema = { $ref: '#/components/schemas/ApiError' }

/** Calls that would delete what this test needs: they get ids that do not exist. */
const ends = new Set([
  'DELETE /v1/instances/{instance_id}/responses/{response_id}',
  'DELETE /v1/instances/{instance_id}',
  'POST /v1/instances/{instance_id}/stop',
  'POST /v1/instances/{instance_id}/restart',
  'DELETE /v1/keys/{key_id}',
  'DELETE /v1/organization/keys/{key_id}',
  'DELETE /v1/webhooks/{webhook_id}',
  'DELETE /v1/instances/{instance_id}/schedules/{schedule_id}',
  'DELETE /v1/instances/{instance_id}/hooks/{hook_id}',
])
const valuesFor = ({ name }: DocumentedOperation) =>
  ends.has(name) ? { ...values, instance_id: randomUUID(), key_id: randomUUID(), webhook_id: randomUUID() } : values

/** It needs its own organization, and a new one after a call that succeeds: it may repeat the name by chance. */
const deletion = 'DELETE /v1/organization'
let doomedKey: string

const authorized = <T extends { headers: Record<string, string> }>(request: T, as = key): T => ({
  ...request,
  headers: { ...request.headers, authorization: `Bearer ${as}` },
})

const gateway = await startFakeGateway({})
const hub = await startFakeClawHub()
const driver = new FakeDriver(() => gateway.endpoint)
addFakeSkills(gateway, hub, () => driver.files(present(values.instance_id)))
const stripe = await new FakeStripe().open()
const billing = await createBilling({
  secretKey: stripeSecretKey,
  webhookSecret: stripeWebhookSecret,
  apiUrl: stripe.url,
  returnUrl: () => 'https://app.example.com',
})
addSessions(gateway)
const provider = await startFakeModelProvider() // which accepts every key
const chowder = await openTestChowder({ sandboxes: driver, clawhubUrl: hub.url, billing, providerUrl: provider.url })
await chowder.startWorker()
const { key } = await chowder.signUp()
doomedKey = (await chowder.signUp()).key
const { body } = await chowder.call('POST', '/v1/instances', { key, body: { name: 'x' } })
const instance_id: string = body.id
await until('it to run', async () => {
  return (await chowder.call('GET', `/v1/instances/${instance_id}/status`, { key })).body.status === 'running'
})
gateway.config = JSON.parse(driver.file(instance_id, 'state/openclaw.json') ?? '{}')
const grant = { name: 'k', instance_ids: [instance_id], permissions: ['read'] }
const issued = await chowder.call('POST', '/v1/keys', { key, body: grant })
const webhook = await chowder.call('POST', '/v1/webhooks', { key, body: { url: 'http://127.0.0.1:9/' } })
const scheduled = { cron: '0 7 * * *', input: 'x' }
const schedule = await chowder.call('POST', `/v1/instances/${instance_id}/schedules`, { key, body: scheduled })
const hooked = { kind: 'github', input: 'x' }
const hook = await chowder.call('POST', `/v1/instances/${instance_id}/hooks`, { key, body: hooked })
const said = { model: 'openclaw', input: 'hello' }
const answered = await chowder.call('POST', `/v1/instances/${instance_id}/responses`, { key, body: said })
const values = {
  instance_id,
  response_id: answered.body.id,
  key_id: issued.body.id,
  webhook_id: webhook.body.id,
  event_id: '1',
  schedule_id: schedule.body.id,
  hook_id: hook.body.id,
  approval_id: randomUUID(),
  job_id: 'tick',
  session_id: 'main',
  channel: 'telegram',
  skill_name: 'web-search',
  path: 'notes.txt',
  q: 'web',
}
afterAll(async () => {
  await chowder.close()
  await gateway.close()
  await hub.close()
  await stripe.close()
  await provider.close()
})

/** Throws unless an answer keeps the contract. */
function judge(answer: { statusCode: number; headers: Record<string, unknown>; body: string }): void {
  const { statusCode, headers, body } = answer
  if (typeof headers['x-request-id'] !== 'string') throw new Error(`${statusCode} without x-request-id`)
  if (statusCode >= 500) throw new Error(`${statusCode}: ${body.slice(0, 300)}`)
  if (statusCode < 400) return
  const faults = check(errorSchema, JSON.parse(body))
  if (faults.length > 0) throw new Error(`${statusCode} in another shape: ${body.slice(0, 300)}`)
  requireErrorBody(statusCode, JSON.parse(body), headers['x-request-id'])
  if (/\bat \w+.*\.[tj]s:\d+/.test(body)) throw new Error(`a stack trace: ${body.slice(0, 300)}`)
}

function heapBytes(): number {
  setFlagsFromString('--expose-gc')
  const collect = runInNewContext('gc') as () => void
  collect()
  return process.memoryUsage().heapUsed
}

/** Sends bad requests, and checks that each answer keeps the contract. */
async function sendBadRequests(inputs: number): Promise<void> {
  let sent = 0
  let before = 0
  await fc
    .assert(
      fc.asyncProperty(badRequests(document, operations, valuesFor), async ({ operation, mutation, ...request }) => {
        const isDeletion = operation === deletion
        const answer = await injectBriefly(chowder.app, authorized(request, isDeletion ? doomedKey : key))
        if (isDeletion && answer.statusCode === 204) doomedKey = (await chowder.signUp()).key
        judge(answer)
        const isDocumented = statusesOf.get(operation)?.has(String(answer.statusCode))
        if (!isDocumented && !mutation.startsWith('path'))
          throw new Error(`${operation} has no ${answer.statusCode}: ${answer.body}`)
        sent += 1
        chowder.logged.length = 0
        if (sent === Math.floor(inputs / 4)) before = heapBytes()
      }),
      { numRuns: inputs, seed, endOnFailure: true },
    )
    .catch((error: unknown) => {
      throw new Error(`repeat with SEED=${seed}`, { cause: error })
    })
  expect(heapBytes() - before).toBeLessThan(growthBytes)
  const { status, body } = await chowder.call('GET', `/v1/instances/${values.instance_id}`, { key })
  expect([status, body.status], 'or most of it met no agent').toEqual([200, 'running'])
}

describe('A15: bad input', () => {
  const promise = 'never a 5xx, always the documented shape, and the memory stays flat'
  test(`1,000 of them: ${promise}`, { timeout: 300_000 }, () => sendBadRequests(1000))
  test(`10,000 of them: ${promise}`, { timeout: 600_000, tags: ['long'] }, () => sendBadRequests(10_000))
})

/** Sends bodies up to the limit of their route, and returns what held the event loop for longer than allowed. */
async function sendLargeRequests(inputs: number): Promise<void> {
  const limitOf = ({ path }: DocumentedOperation) =>
    /\/(responses|chat\/completions)$/.test(path) ? largeBodyBytes : bodyBytes
  /** How long a request holds the event loop. */
  const send = async (request: Parameters<typeof authorized>[0]) => {
    const longestTurn = watchTurns()
    const answer = await injectBriefly(chowder.app, authorized(request))
    return { answer, ms: longestTurn() }
  }
  await fc
    .assert(
      fc.asyncProperty(largeRequests(document, operations, valuesFor, limitOf), async (made) => {
        const { operation, mutation, ...request } = made
        const first = await send(request)
        judge(first.answer)
        // The shorter of two times: a collection of what earlier bodies left behind may fall into one.
        const ms = first.ms < mostTurnMs ? first.ms : Math.min(first.ms, (await send(request)).ms)
        if (ms >= mostTurnMs) throw new Error(`${operation}, ${mutation}: held the event loop ${ms.toFixed(0)} ms`)
        chowder.logged.length = 0
      }),
      { numRuns: inputs, seed, endOnFailure: true },
    )
    .catch((error: unknown) => {
      throw new Error(`repeat with SEED=${seed}`, { cause: error })
    })
}

describe('A15: bodies up to the limit of their route', () => {
  const promise = 'none holds the event loop for more than a moment'
  test(`20 of them: ${promise}`, { timeout: 300_000 }, () => sendLargeRequests(20))
  test(`2,000 of them: ${promise}`, { timeout: 1200_000, tags: ['long'] }, () => sendLargeRequests(2000))
})

describe('A15: requests that no HTTP client library sends', () => {
  let port: number
  beforeAll(async () => {
    await chowder.app.listen({ host: '127.0.0.1', port: 0 })
    port = (chowder.app.server.address() as AddressInfo).port
  })

  /** Sends bytes, and returns everything that the server sends until it ends the connection. */
  async function exchange(...pieces: (string | Buffer)[]): Promise<string> {
    const socket = connect(port, '127.0.0.1')
    socket.setTimeout(10_000, () => socket.destroy(new Error('no end after 10 s')))
    const chunks: Buffer[] = []
    socket.on('data', (chunk) => chunks.push(chunk))
    const failed = new Promise<never>((_, reject) => socket.once('error', reject))
    failed.catch(() => {})
    const closed = once(socket, 'close')
    for (const piece of pieces) socket.write(piece)
    await closed.catch(() => failed)
    return Buffer.concat(chunks).toString()
  }

  function read(text: string) {
    const [head = '', body = ''] = text.split('\r\n\r\n')
    const [line = '', ...lines] = head.split('\r\n')
    const headers = Object.fromEntries(lines.map((header) => header.split(/: ?/, 2).map((part) => part.toLowerCase())))
    return { statusCode: Number(line.split(' ')[1]), headers, body }
  }

  const host = 'host: chowder.test\r\nconnection: close\r\n'
  const get = (path: string) => `GET ${path} HTTP/1.1\r\n${host}`
  const post = `POST /v1/organization/signup HTTP/1.1\r\n${host}content-type: application/json\r\n`

  test.each<[string, number, (string | Buffer)[]]>([
    ['headers of 64 kB', 431, [`${get('/healthz')}x-long: ${'x'.repeat(64 * 1024)}\r\n\r\n`]],
    ['5,000 headers', 431, [`${get('/healthz')}${'x-more: 1\r\n'.repeat(5000)}\r\n`]],
    ['a path of 64 kB', 431, [`${get(`/${'x'.repeat(64 * 1024)}`)}\r\n`]],
    ['no HTTP', 400, ['EHLO chowder.test\r\n\r\n']],
    ['an unknown method', 400, [`PLEASE /healthz HTTP/1.1\r\n${host}\r\n`]],
    ['a method that no route has', 405, [`PROPFIND /v1/instances HTTP/1.1\r\n${host}\r\n`]],
    [
      'an upgrade',
      200,
      [`GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: upgrade, close\r\nupgrade: websocket\r\n\r\n`],
    ],
    ['no host', 400, ['GET /healthz HTTP/1.1\r\nconnection: close\r\n\r\n']],
    ['an unsupported expectation', 417, [`${post}expect: the-unexpected\r\ncontent-length: 2\r\n\r\n{}`]],
    ['a control character in a header', 400, [`${get('/healthz')}x-bad: a\u0001b\r\n\r\n`]],
    ['a folded header', 400, [`${get('/healthz')}x-folded: a\r\n b\r\n\r\n`]],
    [
      'bytes in the path that are not UTF-8',
      400,
      [Buffer.concat([Buffer.from('GET /v1/\xff\xfe', 'latin1'), Buffer.from(` HTTP/1.1\r\n${host}\r\n`)])],
    ],
    ['a negative length', 400, [`${post}content-length: -1\r\n\r\n`]],
    ['two lengths', 400, [`${post}content-length: 2\r\ncontent-length: 3\r\n\r\n{}`]],
    ['a length and chunks', 400, [`${post}content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n`]],
    ['a chunk without a length', 400, [`${post}transfer-encoding: chunked\r\n\r\nzz\r\n`]],
    ['a body of 100 MB, announced', 413, [`${post}content-length: ${100 * megabyte}\r\n\r\n`]],
    [
      'a body of 2 MB, not announced',
      413,
      [`${post}transfer-encoding: chunked\r\n\r\n200000\r\n`, Buffer.alloc(2 * megabyte, 'x'), '\r\n0\r\n\r\n'],
    ],
  ])('%s: %i', async (_what, status, pieces) => {
    const answer = read(await exchange(...pieces))
    expect(answer).toMatchObject({ statusCode: status, headers: { 'x-request-id': expect.stringMatching(/./) } })
    judge(answer)
  })
})

describe('bodies are Unicode, or refused', () => {
  const signUp = async (payload: string | Buffer) => {
    const headers = { 'content-type': 'application/json' }
    const answer = await chowder.app.inject({ method: 'POST', url: '/v1/organization/signup', headers, payload })
    return [answer.statusCode, answer.json().detail ?? answer.json().organization.name]
  }

  test('half of a surrogate pair is a 400 in every place, a whole one is accepted', async () => {
    const refused = [400, expect.stringContaining('surrogate')]
    expect(await signUp('{"name":"a\\ud83d"}')).toEqual(refused)
    expect(await signUp('{"name":"a","more":[{"\\udc00":1}]}')).toEqual(refused)
    expect(await signUp('{"name":"\\ud83e\\udd63"}')).toEqual([201, '🥣'])
    expect(await signUp('{"name":"\\\\ud83d"}')).toEqual([201, '\\ud83d'])
  })

  test('bytes that are not UTF-8 are a 400', async () => {
    expect(await signUp(Buffer.from('{"name":"caf\xe9"}', 'latin1'))).toEqual([400, 'The body is not valid UTF-8.'])
    expect(await signUp(Buffer.from('{"name":"café"}'))).toEqual([201, 'café'])
  })
})

describe('A3: a field that only the server sets', () => {
  const bodies = operations.filter(
    ({ operation, name }) =>
      operation.requestBody?.content['application/json'] && !/\/(responses|completions|compact)$/.test(name),
  )
  test.each(bodies)('$name refuses it', async (operation) => {
    const { properties = {} } = present(present(operation.operation.requestBody).content['application/json']).schema
    const request = authorized(requestOf(operation, valuesFor(operation)))
    for (const field of notTheirs.filter((field) => !(field in (properties as object)))) {
      const payload = JSON.stringify({ ...JSON.parse(request.payload ?? '{}'), [field]: 'x' })
      const answer = await chowder.app.inject({ ...request, payload })
      expect([answer.statusCode, answer.json().detail]).toEqual([
        422,
        [{ loc: ['body', field], msg: expect.stringMatching(/^is not a known field/), type: 'additionalProperties' }],
      ])
    }
  })
})
