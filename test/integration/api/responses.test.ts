import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { type ClientRequest, request as httpRequest, type IncomingMessage } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as wait } from 'node:timers/promises'
import OpenAI from 'openai'
import { afterAll, afterEach, beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest'
import { WebSocket } from 'ws'
import type { StreamEvent } from '#api/responses/format/event-schemas.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import type { RunningGateway } from '#instances/find.ts'
import { requireErrorBody } from '../../support/error-body.ts'
import { startFakeGateway } from '../../support/fake-gateway.ts'
import { expectWholeStream, faultsOfResponse, readEvents } from '../../support/response-schemas.ts'
import { watchStalls } from '../../support/stalls.ts'
import {
  type Answer,
  answerFailed,
  answerJson,
  answerStream,
  delta,
  responseObject,
  type StubGateway,
  sse,
  startStream,
  startStubGateway,
  streamHead,
  wholeStream,
} from '../../support/stub-responses-gateway.ts'
import { cloneDatabase } from '../../support/test-database.ts'
import { callerOf, startTurnApi, type TurnRouteDeps } from '../../support/turn-routes.ts'

const token = 'gateway-token-0123456789'
// The timeout of a health check is the time to the next one, so that may not be too short.
const quick = { silenceMs: 60, probeEveryMs: 1_000, hungMs: 2_500, limitMs: 20_000, graceMs: 200 }
const until = <T>(check: () => T | Promise<T>, timeout = 15_000) => vi.waitFor(check, { timeout, interval: 10 })

const database = await cloneDatabase()
const organizationId = randomUUID()
const caller = callerOf(organizationId)

const startApi = (findGateway: TurnRouteDeps['findGateway'], over: Partial<TurnRouteDeps> = {}) =>
  startTurnApi(organizationId, { db: database.db, findGateway, ...over })

const echo: Answer = answerJson(200, responseObject())
const gateway: StubGateway = await startStubGateway(echo)
const running: RunningGateway = {
  organizationId: 'org',
  endpoint: gateway.endpoint,
  token,
  provider: 'openai',
  release: 'v1',
  model: 'gpt-4o',
  unlistedModels: [],
  asks: false,
}
const asked: [string, string][] = []
const api = await startApi(async (organizationId, instanceId) => {
  asked.push([organizationId, instanceId])
  if (instanceId === 'unknown') throw new AppError('instance_not_found', texts.instanceNotFound)
  if (instanceId === 'stopped') throw new AppError('instance_not_running', texts.notRunning('stopped'))
  return running
})

afterAll(async () => {
  await api.app.close()
  await gateway.close()
  await database.drop()
})
beforeEach(() => {
  gateway.answer = echo
  gateway.health = 'ok'
  gateway.received.length = 0
  gateway.healthProbes = 0
  api.logLines.length = 0
})
// Each test has an instance of its own, because refusals of a provider are remembered by instance.
let instance: string
beforeEach(async () => {
  instance = await newInstance()
})

async function newInstance(): Promise<string> {
  const id = randomUUID()
  await database.pool.query(
    `WITH o AS (
       INSERT INTO organizations (id, name, subscription_tier) VALUES ($2, 'Acme', 'whale') ON CONFLICT DO NOTHING)
     INSERT INTO instances
       (id, organization_id, name, model_provider, sandbox_driver, openclaw_version, sealed_token, desired_state)
     VALUES ($1, $2, 'x', 'openai', 'fake', 'v1', '', 'running')`,
    [id, organizationId],
  )
  return id
}
// Ends the requests that a test left open.
afterEach(() => {
  for (const { response } of gateway.received) response.destroy()
})

const pathOf = (session?: string) =>
  `/v1/instances/${instance}/${session === undefined ? '' : `session/${encodeURIComponent(session)}/`}responses`

const post = (
  body: unknown,
  { path = pathOf(), url = api.url, ...init }: RequestInit & { path?: string; url?: string } = {},
) =>
  fetch(url + path, {
    method: 'POST',
    body: typeof body === 'string' ? body : JSON.stringify(body),
    ...init,
    headers: { 'content-type': 'application/json', ...(init.headers as Record<string, string>) },
  })
const hello = { model: 'gpt-4o', input: 'hello' }
const lastReceived = () => {
  const last = gateway.received.at(-1)
  if (!last) throw new Error('the gateway received nothing')
  return last
}
async function failure(response: Response) {
  const body = (await response.json()) as {
    detail: string | { error: string }
    error: { message: string; type: string; code: string }
  }
  requireErrorBody(response.status, body, response.headers.get('x-request-id'))
  return { status: response.status, ...body, shouldRetry: response.headers.get('x-should-retry') }
}

/** Expects the events of a complete response that failed. */
function expectFailed(events: StreamEvent[], code: string, message: unknown = expect.any(String)): void {
  expectWholeStream(events)
  expect(events.at(-1)).toMatchObject({
    type: 'response.failed',
    response: { status: 'failed', completed_at: null, error: { code, message } },
  })
}

/** A request whose connection a test can destroy, and whose answer it can leave unread. */
async function openRaw(
  body: unknown,
  url = api.url,
): Promise<{ request: ClientRequest; response: Promise<IncomingMessage> }> {
  const request = httpRequest(url + pathOf(), { method: 'POST', headers: { 'content-type': 'application/json' } })
  request.on('error', () => {})
  const response = once(request, 'response').then(([message]) => message as IncomingMessage)
  response.catch(() => {})
  request.end(JSON.stringify(body))
  await until(() => expect(gateway.received.length).toBeGreaterThan(0))
  return { request, response }
}

describe('a message', () => {
  test('is answered with the requested model, and without the headers of the gateway', async () => {
    gateway.answer = answerJson(200, responseObject(), { 'set-cookie': 'a=b', 'x-openclaw-agent': 'main', server: 'x' })
    const response = await post(hello)
    expect(response.status).toBe(200)
    const body = await response.json()
    expect(faultsOfResponse(body)).toEqual([])
    expect(body).toMatchObject({ status: 'completed', model: 'gpt-4o', output: [{ content: [{ text: 'Grüße 🦞' }] }] })
    expect(response.headers.get('cache-control')).toBe('no-store')
    expect(response.headers.get('content-type')).toBe('application/json; charset=utf-8')
    expect([...response.headers.keys()].sort()).toEqual(
      [
        'cache-control',
        'connection',
        'content-length',
        'content-type',
        'date',
        'keep-alive',
        'x-content-type-options',
        'x-request-id',
      ].sort(),
    )
    expect(asked.at(-1)).toEqual([organizationId, instance])
  })

  test('goes to the exact path and to the gateway’s own agent, with the model in a header', async () => {
    await post({ ...hello, instructions: 'be brief', store: false, metadata: { a: 'b' }, temperature: 0.5 })
    expect(lastReceived().url).toBe('/v1/responses')
    expect(lastReceived().body).toEqual({
      model: 'openclaw',
      input: 'hello',
      instructions: 'be brief',
      temperature: 0.5,
    })
    expect(lastReceived().headers['x-openclaw-model']).toBe('openai/gpt-4o')
  })

  test('for `openclaw` uses the model of the instance', async () => {
    const response = await post({ ...hello, model: 'openclaw' })
    expect(lastReceived().headers).not.toHaveProperty('x-openclaw-model')
    expect(await response.json()).toMatchObject({ model: 'openclaw' })
  })

  test('may have items as input', async () => {
    const input = [{ type: 'message', role: 'user', content: 'hi' }]
    expect((await post({ ...hello, input })).status).toBe(200)
    expect(lastReceived().body.input).toEqual(input)
  })

  test('loses `user`, which would select a session, and all nulls, which the gateway refuses', async () => {
    expect((await post({ ...hello, user: 'alice', stream: null, tools: null, temperature: null })).status).toBe(200)
    expect(lastReceived().body).toEqual({ model: 'openclaw', input: 'hello' })
    await post({ ...hello, stream: false })
    expect(lastReceived().body).toEqual({ model: 'openclaw', input: 'hello' })
  })

  test('goes to the gateway without previous_response_id: the path selects the session', async () => {
    const { id } = (await (await post(hello, { path: pathOf('a') })).json()) as { id: string }
    const next = await post({ ...hello, previous_response_id: id }, { path: pathOf('a') })
    expect(next.status).toBe(200)
    expect(await next.json()).toMatchObject({ previous_response_id: id })
    expect(lastReceived().body).toEqual({ model: 'openclaw', input: 'hello' })
    expect(lastReceived().headers['x-openclaw-session-key']).toBe('s-61')
  })

  test('goes to the gateway without headers of the client', async () => {
    const request = httpRequest(api.url + pathOf(), {
      method: 'POST',
      headers: {
        'content-type': 'application/json',
        authorization: 'Bearer chd_org_of_the_caller',
        'x-openclaw-session-key': 'agent:main:other',
        'x-openclaw-model': 'openai/other',
        'x-openclaw-agent-id': 'other',
        'x-openclaw-scopes': 'operator.admin',
        'X-OpenClaw-Message-Channel': 'telegram',
        'x-forwarded-for': '1.2.3.4',
        'x-forwarded-host': 'evil',
        forwarded: 'for=1.2.3.4',
        'x-real-ip': '1.2.3.4',
        cookie: 'a=b',
        te: 'trailers',
        'proxy-authorization': 'Basic x',
        connection: 'x-openclaw-agent-id, keep-alive',
        'accept-encoding': 'gzip',
        accept: 'text/html',
        'x-request-id': 'of-the-client',
        'idempotency-key': 'k',
        host: 'evil.example',
      },
    })
    request.end(JSON.stringify(hello))
    const [response] = (await once(request, 'response')) as [IncomingMessage]
    response.resume()
    expect(response.statusCode).toBe(200)
    const { host, ...headers } = lastReceived().headers
    expect(headers).toEqual({
      connection: 'keep-alive',
      authorization: `Bearer ${token}`,
      accept: 'application/json',
      'content-type': 'application/json',
      'content-length': String(JSON.stringify({ model: 'openclaw', input: 'hello' }).length),
      'x-openclaw-session-key': 'main',
      'x-openclaw-model': 'openai/gpt-4o',
    })
    expect(host).not.toContain('evil')
    expect(lastReceived().rawHeaders.length).toBe(2 * (Object.keys(headers).length + 1))
  })

  test('with two contradicting lengths does not reach the gateway', async () => {
    const request = httpRequest(api.url + pathOf(), {
      method: 'POST',
      headers: { 'content-type': 'application/json', 'content-length': '5', 'transfer-encoding': 'chunked' },
    })
    request.end(JSON.stringify(hello))
    const [response] = (await once(request, 'response')) as [IncomingMessage]
    response.resume()
    expect(response.statusCode).toBe(400)
    expect(gateway.received).toEqual([])
  })

  test('reaches a gateway over a Unix socket', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'responses-'))
    onTestFinished(() => rm(folder, { recursive: true }))
    const behindSocket = await startStubGateway(echo, join(folder, 'Gateway_ü.sock'))
    onTestFinished(() => behindSocket.close())
    const other = await startApi(async () => ({ ...running, endpoint: behindSocket.endpoint }))
    onTestFinished(() => other.app.close())
    expect((await post(hello, { url: other.url })).status).toBe(200)
    expect(behindSocket.received[0]?.headers).toMatchObject({ host: 'localhost', authorization: `Bearer ${token}` })
  })

  test('has the headers of the endpoint, which cannot replace Chowder’s own', async () => {
    if (gateway.endpoint.kind !== 'tcp') throw new Error('the stub listens on tcp')
    const endpoint = { ...gateway.endpoint, headers: { 'x-preview-token': 'p', authorization: 'no' } }
    const other = await startApi(async () => ({ ...running, endpoint }))
    onTestFinished(() => other.app.close())
    await post(hello, { url: other.url })
    expect(lastReceived().headers).toMatchObject({ 'x-preview-token': 'p', authorization: `Bearer ${token}` })
  })
})

describe('the session', () => {
  const keyOf = async (path: string) => {
    const response = await post(hello, { path })
    expect(response.status).toBe(200)
    return lastReceived().headers['x-openclaw-session-key']
  }

  test('is `main` without an id in the path, and with the id `main`', async () => {
    expect(await keyOf(pathOf())).toBe('main')
    expect(await keyOf(pathOf('main'))).toBe('main')
  })

  test('is a different one for each id, also for malicious ids', async () => {
    const ids = [
      ...[
        'sa',
        'SA',
        ' sa ',
        'sa ',
        'Main',
        'MAIN',
        ' main',
        'main ',
        'agent:main:sa',
        'agent:main:main',
        's-7361',
        '%2F',
        '/',
        '%252F',
      ],
      ...[
        '../sa',
        '..',
        '.',
        'a/../sa',
        'sa\n',
        'sa\0',
        'sa?x=1',
        'sa#x',
        'sa;x',
        '🦞',
        'é',
        'e\u0301',
        'subagent:x',
        'cron:x',
        'acp:x',
      ],
      ...['constructor', '__proto__', '*', ':session_id', 'x'.repeat(200), '🦞'.repeat(50)],
    ]
    const keys = new Set<unknown>()
    for (const id of ids) {
      // The URL parser of a client would resolve a dot segment, so it is escaped as an attacker would do.
      const segment = encodeURIComponent(id).replaceAll('.', '%2E')
      const key = await keyOfRaw(`/v1/instances/${instance}/session/${segment}/responses`)
      expect(key).toBe(`s-${Buffer.from(id).toString('hex')}`)
      keys.add(key)
    }
    expect(keys.size).toBe(ids.length)
  })

  test('id is at most 200 bytes', async () => {
    for (const id of ['x'.repeat(201), '🦞'.repeat(51), 'x'.repeat(1000)]) {
      const response = await failure(await post(hello, { path: pathOf(id) }))
      expect(response).toMatchObject({ status: 400, error: { type: 'invalid_request_error' } })
    }
    expect(gateway.received).toEqual([])
  })

  /** Uses node:http, which sends a path unchanged. */
  async function keyOfRaw(path: string) {
    const { port } = new URL(api.url)
    const request = httpRequest({
      port,
      host: '127.0.0.1',
      path,
      method: 'POST',
      headers: { 'content-type': 'application/json' },
    })
    request.end(JSON.stringify(hello))
    const [response] = (await once(request, 'response')) as [IncomingMessage]
    response.resume()
    expect(response.statusCode).toBe(200)
    return lastReceived().headers['x-openclaw-session-key']
  }
})

describe('a message that Chowder refuses', () => {
  test.each([
    ['no model', { input: 'x' }],
    ['no input', { model: 'gpt-4o' }],
    ['a number as input', { model: 'gpt-4o', input: 5 }],
    ['null as input', { model: 'gpt-4o', input: null }],
    ['a number as model', { model: 5, input: 'x' }],
    ['a line break in the model', { model: 'gpt\r\nx-evil: 1', input: 'x' }],
    ['an empty model', { model: '', input: 'x' }],
    ['a model of 201 characters', { model: 'm'.repeat(201), input: 'x' }],
    ['a text as stream', { ...hello, stream: 'true' }],
    ['a list as body', [hello]],
  ])('%s: 422 with both kinds of error, and without a request to the gateway', async (_name, body) => {
    const { status, detail, error } = await failure(await post(body))
    expect(status).toBe(422)
    expect(detail).toEqual(expect.arrayContaining([expect.objectContaining({ loc: expect.arrayContaining(['body']) })]))
    expect(error).toMatchObject({ type: 'invalid_request_error', message: expect.any(String) })
    expect(gateway.received).toEqual([])
  })

  test('a model of another provider: 400', async () => {
    const { status, detail } = await failure(await post({ ...hello, model: 'anthropic/claude-opus-5' }))
    expect({ status, detail }).toMatchObject({ status: 400, detail: expect.stringContaining('openai') })
    expect(gateway.received).toEqual([])
  })

  test('invalid JSON: 400', async () => {
    expect((await failure(await post('{"model":'))).status).toBe(400)
  })

  test('more than 20 MB: 413; just below: sent to the gateway', async () => {
    const bodyOf = (bytes: number) => JSON.stringify({ ...hello, input: 'x'.repeat(bytes) })
    expect((await post(bodyOf(20 * 1024 * 1024 - 100))).status).toBe(200)
    expect((lastReceived().body.input as string).length).toBe(20 * 1024 * 1024 - 100)
    expect(await failure(await post(bodyOf(20 * 1024 * 1024)))).toMatchObject({ status: 413 })
    expect(gateway.received).toHaveLength(1)
  })

  test('an unknown instance: 404', async () => {
    expect(await failure(await post(hello, { path: '/v1/instances/unknown/responses' }))).toMatchObject({
      status: 404,
      detail: 'Instance not found.',
      error: { message: 'Instance not found.', type: 'invalid_request_error' },
    })
  })

  test.each(['/v1/instances/stopped/responses', '/v1/instances/stopped/session/a/responses'])(
    'an instance that does not run: 409 that an OpenAI client does not repeat (%s)',
    async (path) => {
      expect(await failure(await post(hello, { path }))).toMatchObject({
        status: 409,
        detail: texts.notRunning('stopped'),
        shouldRetry: 'false',
      })
    },
  )

  test('a bug of Chowder: 500, not a failure of the gateway', async () => {
    const other = await startApi(async () => {
      throw new Error('secret bug')
    })
    onTestFinished(() => other.app.close())
    const { status, error } = await failure(await post(hello, { url: other.url }))
    expect({ status, error }).toMatchObject({ status: 500, error: { message: 'Internal error.' } })
  })
})

describe('a refusal of the gateway', () => {
  const beforeRun = (status: number, message: string, type = 'invalid_request_error', headers = {}) =>
    answerJson(status, { error: { message, type } }, headers)

  test.each([400, 413, 422, 429])('with %i keeps its status and message', async (status) => {
    gateway.answer = beforeRun(status, 'Unrecognized key: "foo"', 'invalid_request_error', { 'retry-after': '7' })
    const response = await post(hello)
    expect(response.headers.get('retry-after')).toBe('7')
    expect(await failure(response)).toMatchObject({
      status,
      detail: 'Unrecognized key: "foo"',
      error: { message: 'Unrecognized key: "foo"' },
      shouldRetry: null,
    })
  })

  test('of an unknown model is a 400', async () => {
    gateway.answer = answerFailed(404, 'invalid_request_error', 'Unknown model: openai/gpt-4o')
    expect(await failure(await post(hello))).toMatchObject({ status: 400, detail: 'Unknown model: openai/gpt-4o' })
  })

  test('of the provider is a 502 about the organization’s key, and explains no later failure', async () => {
    gateway.answer = answerFailed(401, 'authentication_error', '401: bad key sk-secret')
    expect(await failure(await post(hello))).toMatchObject({
      status: 502,
      detail: { error: expect.stringContaining("(openai) refused your organization's API key") },
      error: { type: 'server_error', code: 'provider_key_refused' },
      shouldRetry: 'false',
    })
    gateway.answer = answerFailed(500, 'api_error', 'internal error')
    expect(await failure(await post(hello))).toMatchObject({
      detail: { error: 'The gateway of this instance failed with 500: internal error' },
      error: { code: 'gateway_unreachable' },
    })
    expect(api.logLines.join('')).not.toContain('sk-secret')
  })

  describe.each([
    [409, 'instance_stopping', { desiredState: 'stopped', restartGeneration: null, readyAt: null }],
    [409, 'instance_stopping', { desiredState: 'terminated', restartGeneration: null, readyAt: null }],
    [503, 'instance_restarting', { desiredState: 'running', restartGeneration: 2, readyAt: null }],
    [502, 'gateway_unreachable', { desiredState: 'running', restartGeneration: null, readyAt: null }],
  ] as const)('during which the instance changes is a %i %s: %o', (status, code, summary) => {
    const failedEvent = sse({
      type: 'response.failed',
      response: responseObject({ status: 'failed', error: { code: 'api_error', message: 'internal error' } }),
    })
    test.each([
      ['an error', answerFailed(500, 'api_error', 'internal error')],
      ['a cut connection', ((response) => void response.destroy()) satisfies Answer],
    ])('%s', async (_name, answer) => {
      const changing = await startApi(async () => running, { findSummary: async () => summary as never })
      onTestFinished(() => changing.app.close())
      gateway.answer = answer
      const answered = await failure(await post(hello, { url: changing.url }))
      expect(answered).toMatchObject({ status, error: { code } })
    })

    test.each([
      ['an error', answerStream(`${streamHead}${delta('I am')}${failedEvent}data: [DONE]\n\n`)],
      [
        'a cut connection',
        (async (response) => {
          startStream(response)
          response.write(streamHead + delta('I am'))
          await wait(50)
          response.destroy()
        }) satisfies Answer,
      ],
    ])('%s within a stream', async (_name, answer) => {
      const changing = await startApi(async () => running, { findSummary: async () => summary as never })
      onTestFinished(() => changing.app.close())
      gateway.answer = answer
      const { events } = readEvents(await (await post({ ...hello, stream: true }, { url: changing.url })).text())
      expect(events.at(-1)).toMatchObject({ type: 'response.failed', response: { error: { code } } })
    })
  })

  test('within a stream names the provider too', async () => {
    const failed = responseObject({ status: 'failed', error: { code: 'authentication_error', message: '401' } })
    gateway.answer = answerStream(`${streamHead}${sse({ type: 'response.failed', response: failed })}data: [DONE]\n\n`)
    const streamed = await post({ ...hello, stream: true })
    expect(streamed.status).toBe(200)
    const { events } = readEvents(await streamed.text())
    expectWholeStream(events)
    expect(events.at(-1)).toMatchObject({
      type: 'response.failed',
      response: {
        model: 'gpt-4o',
        status: 'failed',
        error: { code: 'provider_key_refused', message: expect.stringContaining('refused') },
      },
    })
  })

  test('that has no reason has the one that OpenClaw noted in the session, streamed and not', async () => {
    const noting = await startFakeGateway({ token })
    const asking = await startApi(async () => ({ ...running, endpoint: noting.endpoint }))
    onTestFinished(async () => {
      await asking.app.close()
      await noting.close()
    })
    noting.behaviour.turns = 'internal error'
    const note =
      'Inline API key for provider "openai" is temporarily disabled after a provider auth/billing failure. Retry after about 1 minute'
    noting.methods['chat.history'] = () => ({
      messages: [
        { role: 'user', content: 'hello' },
        { role: 'user', content: note },
      ],
    })
    const held = await post(hello, { url: asking.url })
    expect(held.headers.get('retry-after')).toBe('60')
    expect(await failure(held)).toMatchObject({
      status: 503,
      detail: expect.stringContaining('the agent tries again within 1 min'),
      error: { code: 'provider_key_on_hold' },
      shouldRetry: null,
    })
    const { events } = readEvents(await (await post({ ...hello, stream: true }, { url: asking.url })).text())
    expect(events.at(-1)).toMatchObject({ response: { error: { code: 'provider_key_on_hold' } } })
    expect(noting.calls.filter(({ method }) => method === 'chat.history')).toHaveLength(2)
    // Of a turn at work, as recorded from OpenClaw 2026.9.6.
    const usedUp =
      'The budget “daily” of this key is used up until 2026-11-29 00:00 (UTC), when it resets. Daily usage limit: 1 tokens.'
    noting.methods['chat.history'] = () => ({
      messages: [
        { role: 'toolResult', content: [{ type: 'text', text: '(no output)' }] },
        { role: 'assistant', content: [{ type: 'text', text: '⚠️ LLM request failed (rate limited, HTTP 429).' }] },
      ],
      sessionInfo: { status: 'failed', lastRunError: `⚠️ ⚠️ ${usedUp}` },
    })
    expect(await failure(await post(hello, { url: asking.url }))).toMatchObject({
      status: 402,
      error: { code: 'budget_exceeded', message: usedUp },
    })
  })

  test('over the rate limit of the provider has its Retry-After, and is not repeated by clients that cannot know', async () => {
    gateway.answer = answerFailed(429, 'rate_limit_error', '429 slow down; Retry-After: 7 seconds')
    const response = await post(hello)
    expect(response.headers.get('retry-after')).toBe('7')
    // The stub has no history, so that the agent may have acted.
    expect(await failure(response)).toMatchObject({
      status: 429,
      detail: expect.stringMatching(/model provider \(openai\) refused the turn: .* in 7 s\. It says: “slow down”$/),
      error: { code: 'provider_rate_limited' },
      shouldRetry: 'false',
    })
  })

  test.each([401, 403])(
    'of Chowder’s own token (%i) is a 502 and an ERROR in the log, without the token',
    async (status) => {
      gateway.answer = beforeRun(status, 'Unauthorized', 'unauthorized')
      const { detail, ...rest } = await failure(await post(hello))
      expect(rest).toMatchObject({ status: 502, error: { type: 'server_error' } })
      expect(detail).toMatchObject({ error: expect.stringContaining('did not accept Chowder') })
      const lines = api.logLines.map((line) => JSON.parse(line))
      expect(lines).toContainEqual(
        expect.objectContaining({
          level: 50,
          instanceId: instance,
          msg: expect.stringContaining("Chowder's own token"),
        }),
      )
      expect(api.logLines.join('') + JSON.stringify(detail)).not.toContain(token)
    },
  )

  test.each([500, 502, 503, 504, 404, 302])(
    'with %i before the turn is a 502 that names the status',
    async (status) => {
      gateway.answer = (response) => response.writeHead(status, { location: 'http://127.0.0.1:1/' }).end('Not Found')
      expect(await failure(await post(hello))).toMatchObject({
        status: 502,
        detail: { error: `The gateway of this instance failed with ${status}.` },
        shouldRetry: null,
      })
    },
  )

  test('after the turn began must not be retried', async () => {
    gateway.answer = answerFailed(502, 'api_error', 'upstream provider error')
    expect(await failure(await post(hello))).toMatchObject({
      status: 502,
      error: { code: 'provider_error' },
      shouldRetry: 'false',
    })
  })

  test('is read only up to a limit', async () => {
    gateway.answer = (response) => {
      response.writeHead(400, { 'content-type': 'application/json' })
      const fill = () => {
        while (!response.destroyed && response.write('x'.repeat(65_536)));
      }
      response.on('drain', fill)
      fill()
    }
    expect(await failure(await post(hello))).toMatchObject({ status: 400, detail: 'The gateway refused the request.' })
    await until(() => expect(lastReceived().abortedAt).toBeDefined())
  })
})

describe('a gateway that does not work', () => {
  test.each([
    { kind: 'tcp' as const, host: '127.0.0.1', port: 1 },
    { kind: 'tcp' as const, host: '::1', port: 1 },
    { kind: 'unix' as const, path: '/tmp/no-such-gateway.sock' },
  ])('is a 502 with the documented text when it is unreachable ($kind $host)', async (endpoint) => {
    const other = await startApi(async () => ({ ...running, endpoint }))
    onTestFinished(() => other.app.close())
    expect(await failure(await post(hello, { url: other.url }))).toMatchObject({
      status: 502,
      detail: { error: texts.gatewayUnavailable },
      error: { message: texts.gatewayUnavailable, type: 'server_error' },
      shouldRetry: null,
    })
  })

  test('is a 502 that must not be retried when it breaks off after the request', async () => {
    for (const answer of [
      (response) => response.destroy(),
      (response) => {
        response.writeHead(200, { 'content-type': 'application/json', 'content-length': '1000' })
        response.write('{"id":')
        setImmediate(() => response.destroy())
      },
    ] satisfies Answer[]) {
      gateway.answer = answer
      expect(await failure(await post(hello))).toMatchObject({
        status: 502,
        detail: { error: texts.gatewayUnavailable },
        shouldRetry: 'false',
      })
    }
  })

  test.each(['<html>', '"text"', 'null', '{"id":'])('is a 502 when it answers %j', async (text) => {
    gateway.answer = (response) => response.writeHead(200, { 'content-type': 'text/html' }).end(text)
    const { status, detail } = await failure(await post(hello))
    expect({ status, detail }).toMatchObject({
      status: 502,
      detail: { error: expect.stringContaining('cannot be read') },
    })
  })

  test('is a 502 when its answer has no end, and the answer is not read further', async () => {
    const part = Buffer.alloc(4 * 1024 * 1024, ' ')
    gateway.answer = (response) => {
      response.writeHead(200, { 'content-type': 'application/json' })
      const fill = () => {
        while (!response.destroyed && response.write(part));
      }
      response.on('drain', fill)
      fill()
    }
    const { status, detail } = await failure(await post(hello))
    expect({ status, detail }).toMatchObject({ status: 502, detail: { error: expect.stringContaining('too large') } })
    await until(() => expect(lastReceived().abortedAt).toBeDefined())
  })
})

describe('a streamed message', () => {
  const stream = { ...hello, stream: true }

  test('is answered with the events of the format and the requested model', async () => {
    gateway.answer = answerStream(wholeStream)
    const response = await post(stream)
    expect(response.headers.get('content-type')).toBe('text/event-stream')
    expect(response.headers.get('cache-control')).toBe('no-store')
    const { events, isDone } = readEvents(await response.text())
    expectWholeStream(events)
    expect(isDone).toBe(true)
    expect(events.map(({ type }) => type.replace('response.', ''))).toEqual([
      ...[
        'created',
        'in_progress',
        'output_item.added',
        'content_part.added',
        'output_text.delta',
        'output_text.delta',
      ],
      ...['output_text.done', 'content_part.done', 'output_item.done', 'completed'],
    ])
    expect(events.at(-1)).toMatchObject({
      response: { model: 'gpt-4o', output: [{ content: [{ text: 'Grüße 🦞' }] }] },
    })
    expect(lastReceived().headers.accept).toBe('text/event-stream')
    expect(lastReceived().body.stream).toBe(true)
  })

  test('is answered event by event while the gateway still works', async () => {
    gateway.answer = (response) => startStream(response).write(streamHead)
    const response = await post(stream)
    const reader = (response.body as ReadableStream<Uint8Array>).getReader()
    const readText = async () => Buffer.from((await reader.read()).value ?? []).toString()
    expect(await readText()).toContain('event: response.created')
    for (const text of ['one', ' two']) {
      lastReceived().response.write(delta(text))
      expect(await readText()).toContain(`"delta":"${text}"`)
    }
    const completed = sse({ type: 'response.completed', response: responseObject() })
    lastReceived().response.end(completed)
    expect(await readText()).toContain('event: response.completed')
  })

  test('is taken to its end when only [DONE] is missing, and a later one has another connection', async () => {
    const other = await startApi(async () => running)
    onTestFinished(() => other.app.close())
    const done = 'data: [DONE]\n\n'
    const ports: (number | undefined)[] = []
    gateway.answer = (response) => {
      ports.push(response.socket?.remotePort)
      startStream(response).write(wholeStream.slice(0, -done.length))
      setTimeout(() => response.end(done), 5)
    }
    for (const count of [1, 2]) {
      await (await post(stream, { url: other.url })).text()
      await until(() => expect(lastReceived().response.closed).toBe(true))
      expect(gateway.received.filter(({ abortedAt }) => abortedAt === undefined)).toHaveLength(count)
      await wait(200)
    }
    expect(ports[1]).not.toBe(ports[0])
  })

  test.each(['ends', 'resets'])(
    'F18: ends with response.failed when the gateway %s the stream, and does not look complete',
    async (how) => {
      gateway.answer = (response) => {
        startStream(response).write(`${streamHead}${delta('a')}`, () => {
          if (how === 'ends') response.end()
          else response.destroy()
        })
      }
      const { events } = readEvents(await (await post(stream)).text())
      expectFailed(events, how === 'ends' ? 'gateway_unreachable' : 'gateway_unreachable')
      expect(events.at(-1)).toMatchObject({
        response: { output: [{ status: 'incomplete', content: [{ text: 'a' }] }] },
      })
      expect(api.logLines.join('')).toContain('a streamed turn failed')
    },
  )
})

const connectionsOf = (server: { getConnections(done: (error: Error | null, count: number) => void): unknown }) =>
  new Promise<number>((resolve) => server.getConnections((_error, count) => resolve(count)))

describe('a client that leaves', () => {
  const hang: Answer = () => {}
  const begin: Answer = (response) => startStream(response).write(streamHead)
  const beginJson: Answer = (response) => {
    response.writeHead(200, { 'content-type': 'application/json' })
    response.write('{')
  }

  test.each([
    ['before the answer', hang, hello],
    ['in the middle of a stream', begin, { ...hello, stream: true }],
    ['in the middle of an answer', beginJson, hello],
  ])('F17: %s ends the turn at the gateway within a second', async (_name, answer, body) => {
    gateway.answer = answer
    const { request, response } = await openRaw(body)
    if (answer === begin) (await response).resume()
    const leftAt = performance.now()
    request.destroy()
    await until(() => expect(lastReceived().abortedAt).toBeDefined())
    expect((lastReceived().abortedAt ?? Number.POSITIVE_INFINITY) - leftAt).toBeLessThan(5_000)
    expect(api.logLines.filter((line) => JSON.parse(line).level >= 50)).toEqual([])
  })

  test('while its instance is looked up does not reach the gateway', async () => {
    let found = () => {}
    let wasAsked = false
    const other = await startApi(async () => {
      wasAsked = true
      await new Promise<void>((resolve) => {
        found = resolve
      })
      return running
    })
    onTestFinished(() => other.app.close())
    const request = httpRequest(other.url + pathOf(), {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
    })
    request.on('error', () => {})
    request.end(JSON.stringify(hello))
    await until(() => expect(wasAsked).toBe(true))
    request.destroy()
    await until(async () => expect(await connectionsOf(other.app.server)).toBe(0))
    found()
    await wait(50)
    expect(gateway.received).toEqual([])
  })
})

/** A stream that is larger than all buffers on the way. */
const endless: Answer = (response) => {
  const large = delta('x'.repeat(64 * 1024))
  const fill = () => {
    while (!response.destroyed && response.write(large));
  }
  startStream(response).on('drain', fill).write(streamHead)
  fill()
}

describe('a client that does not read', () => {
  test('is cut off after the end of its turn, which is stored', async () => {
    const other = await startApi(async () => running, { turnTimeouts: { ...quick, limitMs: 5_000 } })
    onTestFinished(() => other.app.close())
    gateway.answer = endless
    const { response } = await openRaw({ ...hello, stream: true }, other.url)
    ;(await response).on('error', () => {}).pause()
    await until(async () => {
      const { rows } = await database.pool.query('SELECT status FROM responses WHERE instance_id = $1', [instance])
      expect(rows).toEqual([{ status: 'failed' }])
    })
  })

  test('does not keep a server from closing', async () => {
    const other = await startApi(async () => running, { turnTimeouts: quick })
    gateway.answer = endless
    const { request, response } = await openRaw({ ...hello, stream: true }, other.url)
    onTestFinished(() => void request.destroy())
    ;(await response).on('error', () => {}).pause()
    const startedAt = performance.now()
    const closed = other.app.close()
    await Promise.race([closed, wait(quick.limitMs)])
    expect(performance.now() - startedAt).toBeLessThan(quick.limitMs / 2)
    const { rows } = await database.pool.query('SELECT status FROM responses WHERE instance_id = $1', [instance])
    expect(rows).toEqual([{ status: 'failed' }])
  })
})

describe('a WebSocket', () => {
  const connect = (url: string) => {
    const socket = new WebSocket(url.replace('http', 'ws') + pathOf())
    onTestFinished(() => socket.terminate())
    return socket
  }

  test('that is closed while its turn is counted begins no turn', async () => {
    const counting = Promise.withResolvers<void>()
    let counted = 0
    const other = await startApi(async () => running, {
      countTurn: () => {
        counted += 1
        return counting.promise
      },
    })
    onTestFinished(() => other.app.close())
    const socket = connect(other.url)
    await once(socket, 'open')
    socket.send(JSON.stringify({ type: 'response.create', ...hello }))
    await until(() => expect(counted).toBe(1))
    socket.terminate()
    await until(async () => expect(await connectionsOf(other.app.server)).toBe(0))
    counting.resolve()
    await wait(100)
    expect(gateway.received).toEqual([])
  })

  test('that opens while the server closes is closed', async () => {
    const found = Promise.withResolvers<void>()
    let asked = 0
    const other = await startApi(async () => running, {
      findSummary: async (_organization, id) => {
        asked += 1
        await found.promise
        return { id } as never
      },
    })
    const socket = connect(other.url)
    const ended = once(socket, 'close')
    await until(() => expect(asked).toBe(1))
    const closed = other.app.close()
    await wait(50)
    found.resolve()
    expect((await Promise.race([ended, wait(10_000, [])]))[0]).toBe(1012)
    await closed
  })
})

describe('a server that closes', () => {
  test('ends streams with response.failed and other messages with a 503, at once', async () => {
    const other = await startApi(async () => running)
    gateway.answer = (response, { body }) => {
      if (body.stream) startStream(response).write(streamHead)
    }
    const streamed = await post({ ...hello, stream: true }, { url: other.url })
    const plain = post(hello, { url: other.url, path: pathOf('other') })
    await until(() => expect(gateway.received).toHaveLength(2))
    const startedAt = performance.now()
    const closed = other.app.close()
    expectFailed(readEvents(await streamed.text()).events, 'shutting_down', expect.stringContaining('shutting down'))
    expect(await failure(await plain)).toMatchObject({ status: 503, shouldRetry: 'false' })
    await closed
    expect(performance.now() - startedAt).toBeLessThan(4_500)
    await until(() => expect(gateway.received.every(({ abortedAt }) => abortedAt !== undefined)).toBe(true))
  })
})

describe('A12: a running turn', () => {
  const open = async (findCaller: TurnRouteDeps['findCaller']) => {
    const other = await startApi(async () => running, { findCaller })
    onTestFinished(() => other.app.close())
    gateway.answer = (response, { body }) => {
      if (body.stream) startStream(response).write(streamHead)
    }
    return other.url
  }

  test('ends within 5 s after its key is refused, with response.failed or a 401', async () => {
    let isRefused = false
    const url = await open(async () => (isRefused ? null : caller))
    const waiting = post(hello, { url })
    const streamed = await post({ ...hello, stream: true }, { url, path: pathOf('other') })
    await until(() => expect(gateway.received).toHaveLength(2))
    isRefused = true
    const startedAt = performance.now()
    const stalledMs = watchStalls()
    expectFailed(readEvents(await streamed.text()).events, 'invalid_api_key')
    expect(await failure(await waiting)).toMatchObject({ status: 401, detail: texts.unknownKey })
    expect(performance.now() - startedAt - stalledMs()).toBeLessThan(5_000)
    await until(() => expect(gateway.received.every(({ abortedAt }) => abortedAt !== undefined)).toBe(true))
  })

  test('ends after its organization is suspended, with the reason', async () => {
    let isSuspended = false
    const url = await open(async () => {
      if (isSuspended) throw new AppError('organization_suspended', texts.suspended)
      return caller
    })
    const streamed = await post({ ...hello, stream: true }, { url })
    isSuspended = true
    expect(await streamed.text()).toContain(texts.suspended)
  })

  test('continues while the database is not available, and its key is not checked after its end', async () => {
    let asked = 0
    const url = await open(async (keyHash) => {
      expect(keyHash).toBe(caller.keyHash)
      asked += 1
      throw new Error('the database is not available')
    })
    const streamed = await post({ ...hello, stream: true }, { url })
    await until(() => expect(asked).toBeGreaterThanOrEqual(2))
    lastReceived().response.end(wholeStream.slice(streamHead.length))
    expect(await streamed.text()).toContain('event: response.completed')
    const askedByThen = asked
    await wait(2_500)
    expect(asked).toBe(askedByThen)
  })
})

describe('a silent gateway', () => {
  const open = async (over: Partial<typeof quick> = {}) => {
    const other = await startApi(async () => running, { turnTimeouts: { ...quick, ...over } })
    onTestFinished(() => other.app.close())
    return other.url
  }

  test('may think while it is healthy, and its answer arrives', async () => {
    const url = await open()
    gateway.answer = () => {}
    const answer = post(hello, { url })
    await until(() => expect(gateway.healthProbes).toBeGreaterThan(3))
    echo(lastReceived().response, lastReceived())
    expect((await answer).status).toBe(200)
    await wait(quick.probeEveryMs)
    const probes = gateway.healthProbes
    await wait(2 * quick.probeEveryMs)
    expect(gateway.healthProbes).toBe(probes)
  })

  test.each(['failing', 'hung'] as const)('with the health %s is a 504 that must not be retried', async (health) => {
    const url = await open()
    gateway.answer = () => {}
    gateway.health = health
    expect(await failure(await post(hello, { url }))).toMatchObject({
      status: 504,
      detail: { error: expect.stringContaining('does not respond') },
      error: { type: 'server_error' },
      shouldRetry: 'false',
    })
    await until(() => expect(gateway.healthProbes).toBeGreaterThanOrEqual(3))
    await until(() => expect(lastReceived().abortedAt).toBeDefined())
  })

  test('ends a stream with response.failed', async () => {
    const url = await open()
    gateway.health = 'hung'
    gateway.answer = (response) => startStream(response).write(streamHead)
    const { events } = readEvents(await (await post({ ...hello, stream: true }, { url })).text())
    expectFailed(events, 'gateway_timeout')
  })

  test.each([true, false])('ends at the hard limit although it is healthy (stream: %s)', async (isStream) => {
    const url = await open({ limitMs: 5_000 })
    gateway.answer = (response) => {
      if (isStream) startStream(response).write(streamHead)
    }
    const response = await post({ ...hello, stream: isStream }, { url })
    expect(response.status).toBe(isStream ? 200 : 504)
    expect(await response.text()).toMatch(/it took longer than/)
  })
})

describe('the official OpenAI client', () => {
  const clientOf = (path = `/v1/instances/${instance}`) =>
    new OpenAI({ baseURL: api.url + path, apiKey: 'chd_org_x', maxRetries: 2 })

  test('gets an answer', async () => {
    const response = await clientOf().responses.create({ model: 'gpt-4o', input: 'hello' })
    expect(response).toMatchObject({ model: 'gpt-4o', status: 'completed', output_text: 'Grüße 🦞' })
  })

  test('gets an answer in a session', async () => {
    await clientOf(`/v1/instances/${instance}/session/user-42`).responses.create({ model: 'gpt-4o', input: 'hello' })
    expect(lastReceived().headers['x-openclaw-session-key']).toBe(`s-${Buffer.from('user-42').toString('hex')}`)
  })

  test('gets a stream', async () => {
    gateway.answer = answerStream(wholeStream)
    const types: string[] = []
    let text = ''
    for await (const event of await clientOf().responses.create({ model: 'gpt-4o', input: 'hello', stream: true })) {
      types.push(event.type)
      if (event.type === 'response.output_text.delta') text += event.delta
      if (event.type === 'response.completed') expect(event.response.model).toBe('gpt-4o')
    }
    expect(types.at(0)).toBe('response.created')
    expect(types.at(-1)).toBe('response.completed')
    expect(text).toBe('Grüße 🦞')
  })

  test('gets the reason when a stream breaks off', async () => {
    gateway.answer = answerStream(streamHead + delta('a'))
    const stream = await clientOf().responses.create({ model: 'gpt-4o', input: 'hello', stream: true })
    const events: unknown[] = []
    for await (const event of stream) events.push(event)
    expectFailed(events as StreamEvent[], 'gateway_unreachable', expect.stringContaining('before it was complete'))
  })

  test('that stops reading ends the turn', async () => {
    gateway.answer = (response) => startStream(response).write(streamHead)
    const stream = await clientOf().responses.create({ model: 'gpt-4o', input: 'hello', stream: true })
    for await (const _event of stream) break
    await until(() => expect(lastReceived().abortedAt).toBeDefined())
  })

  test('throws its own errors with Chowder’s texts', async () => {
    await expect(
      clientOf('/v1/instances/unknown').responses.create({ model: 'gpt-4o', input: 'x' }),
    ).rejects.toMatchObject({
      name: expect.any(String),
      status: 404,
      type: 'invalid_request_error',
      message: expect.stringContaining('Instance not found.'),
    })
  })

  test('does not retry a turn that may have begun, or a message to an instance that does not run', async () => {
    gateway.answer = answerFailed(502, 'api_error', 'upstream provider error')
    await expect(clientOf().responses.create({ model: 'gpt-4o', input: 'x' })).rejects.toMatchObject({ status: 502 })
    expect(gateway.received).toHaveLength(1)
    asked.length = 0
    await expect(
      clientOf('/v1/instances/stopped').responses.create({ model: 'gpt-4o', input: 'x' }),
    ).rejects.toMatchObject({
      status: 409,
    })
    expect(asked).toHaveLength(1)
  })
})
