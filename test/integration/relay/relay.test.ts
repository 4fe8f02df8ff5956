import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { connect, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { Agent, request } from 'undici'
import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest'
import { startRelay } from '#composition/relay.ts'
import type { ModelProvider } from '#database/schema.ts'
import { newRelayToken } from '#instances/gateway/tokens.ts'
import { changeIntent, terminateInstance } from '#instances/intent.ts'
import { freePort } from '#platform/free-port.ts'
import { newId } from '#platform/ids.ts'
import type { CallEnd, RelayedCall } from '#relay/call.ts'
import { startFakeModelProvider } from '../../support/fake-model-provider.mjs'
import { startFlood } from '../../support/flood.ts'
import { listenLocally } from '../../support/local-server.ts'
import { openRelayedChowder, type RelayedAgent, vendorKeys } from '../../support/relayed-chowder.ts'
import { until } from '../../support/until.ts'

/** A vendor that answers what the test says, byte for byte. */
let answerNext: (asked: IncomingMessage, reply: ServerResponse, body: Buffer) => unknown
const asked: { method: string; url: string; headers: IncomingMessage['headers']; body: Buffer; at: number }[] = []
const server = createServer(async (incoming, reply) => {
  const { method = '', url = '', headers } = incoming
  const record = { method, url, headers, body: Buffer.alloc(0), at: performance.now() }
  asked.push(record)
  const chunks: Buffer[] = []
  try {
    for await (const chunk of incoming) chunks.push(chunk)
    record.body = Buffer.concat(chunks)
  } catch {
    return // the caller left
  }
  await answerNext(incoming, reply, record.body)
})
const ok = (_: IncomingMessage, reply: ServerResponse) => reply.end('{}')

const watched: { call: RelayedCall; bytes: number; statuses: number[]; end: CallEnd | null }[] = []

const vendor = await listenLocally(server)
const relayed = await openRelayedChowder(vendor.url, {
  places: { perInstance: 3 },
  pace: { longestWaitMs: 1500, spacingMs: 50 },
  observe: (call) => {
    const seen: (typeof watched)[number] = { call, bytes: 0, statuses: [], end: null }
    watched.push(seen)
    return {
      answer: (status) => void seen.statuses.push(status),
      chunk: (bytes) => {
        seen.bytes += bytes.length
      },
      end: (end) => {
        seen.end = end
      },
    }
  },
})
const agent = await relayed.addAgent()
afterAll(async () => {
  await relayed.close()
  await vendor.close()
})
beforeEach(() => {
  asked.length = 0
  watched.length = 0
  answerNext = ok
})

const messages = '/v1/messages'
const post = (
  { token }: Pick<RelayedAgent, 'token'>,
  {
    path = messages,
    provider = 'anthropic' as ModelProvider,
    body = '{}',
    headers = {},
    signal = undefined as never,
  } = {},
) =>
  request(relayed.at(provider, path), {
    method: 'POST',
    headers: { 'x-api-key': token, 'content-type': 'application/json', ...headers },
    body,
    signal,
  })
const refused = async (of: Pick<RelayedAgent, 'token'>) => {
  const { statusCode, body } = await post(of)
  await body.dump()
  return statusCode === 401 || statusCode === 503
}
/** How long after `act` a call was made that was still let through, in ms. */
async function takenAfter(of: RelayedAgent, act: () => Promise<unknown>): Promise<number> {
  expect(await refused(of)).toBe(false)
  await act()
  const from = performance.now()
  for (let last = 0; ; await sleep(10)) {
    const at = performance.now() - from
    if (await refused(of)) return last
    last = at
    if (last > 5000) return last
  }
}

describe('a call that is let through', () => {
  test.each([
    ['anthropic', messages, { stream: true, messages: [{ role: 'user', content: '[[fake:words=50]]' }] }, 'x-api-key'],
    ['openai', '/v1/responses', { stream: true, input: '[[fake:words=50]]' }, 'authorization'],
    [
      'gemini',
      '/v1beta/models/gemini-3-pro:streamGenerateContent?alt=sse',
      { contents: [{ role: 'user', parts: [{ text: '[[fake:words=50]]' }] }] },
      'x-goog-api-key',
    ],
  ] as const)(
    '%s: the streamed answer is that of the vendor, asked with the key of the organization',
    async (...row) => {
      const [provider, path, body, header] = row
      const fake = await startFakeModelProvider({ apiKey: vendorKeys[provider] })
      const own = await openRelayedChowder(fake.url)
      try {
        const { token } = await own.addAgent(provider)
        const send = (url: string, key: string) =>
          request(url, {
            method: 'POST',
            headers: {
              [header]: header === 'authorization' ? `Bearer ${key}` : key,
              'content-type': 'application/json',
            },
            body: JSON.stringify(body),
          })
        const direct = await send(`${fake.url}${path}`, vendorKeys[provider])
        const relayedAnswer = await send(own.at(provider, path), token)
        const ids = /"?(msg|resp|chatcmpl)_?[\w-]+"/g
        expect((await relayedAnswer.body.text()).replace(ids, '')).toBe((await direct.body.text()).replace(ids, ''))
        expect(relayedAnswer.statusCode).toBe(200)
        expect(relayedAnswer.headers['content-type']).toBe('text/event-stream')
        expect(fake.requests.map(({ key }) => key)).toEqual([vendorKeys[provider], vendorKeys[provider]])
        expect(fake.requests[1]?.body).toEqual(fake.requests[0]?.body)
        expect(JSON.stringify(fake.requests)).not.toContain(token)
      } finally {
        await own.close()
        await fake.close()
      }
    },
  )

  test('its bytes are unchanged both ways, and come as they come', async () => {
    const sent = Buffer.from([0, 255, 13, 10, 200, 0, 7])
    answerNext = async (_, reply) => {
      reply.writeHead(200, { 'content-type': 'text/event-stream' })
      reply.write(sent)
      await until('the first bytes to be read', () => firstAt > 0, 5000)
      reply.end(sent)
    }
    let firstAt = 0
    const body = Buffer.from([1, 0, 254, 128])
    const answer = await post(agent, { body: body as never })
    const got: Buffer[] = []
    for await (const chunk of answer.body) {
      firstAt = performance.now()
      got.push(chunk)
    }
    expect(Buffer.concat(got)).toEqual(Buffer.concat([sent, sent]))
    expect(asked[0]?.body).toEqual(body)
    expect(watched).toMatchObject([
      { call: { instanceId: agent.id, path: messages }, bytes: 14, statuses: [200], end: 'answered' },
    ])
  })

  test('an error comes unchanged, with its limits and without what is of the connection', async () => {
    const said = '{"type":"error","error":{"type":"invalid_request_error","message":"no"}}'
    answerNext = (_, reply) =>
      reply
        .writeHead(400, {
          'content-type': 'application/json',
          'anthropic-ratelimit-requests-remaining': '7',
          'x-ratelimit-limit-tokens': '9',
          'request-id': 'req_1',
          'x-should-retry': 'false',
          'set-cookie': 'a=b',
          'alt-svc': 'h3=":443"',
          location: 'http://127.0.0.1:1',
        })
        .end(said)
    const { statusCode, headers, body } = await post(agent)
    expect([statusCode, await body.text()]).toEqual([400, said])
    expect(headers).toMatchObject({
      'anthropic-ratelimit-requests-remaining': '7',
      'x-ratelimit-limit-tokens': '9',
      'request-id': 'req_1',
      'x-should-retry': 'false',
      'content-type': 'application/json',
    })
    for (const name of ['set-cookie', 'alt-svc', 'location']) expect(headers).not.toHaveProperty(name)
  })

  test('the vendor gets the headers of its API, and neither the token nor what names other hosts', async () => {
    await post(agent, {
      path: `${messages}?beta=true&key=${agent.token}&k%65y=other&access_token=a&$httpMethod=DELETE`,
      headers: {
        'anthropic-beta': 'a,b',
        'anthropic-version': '2023-06-01',
        'x-stainless-lang': 'js',
        'x-forwarded-for': '10.0.0.1',
        'x-goog-api-key': agent.token,
        authorization: `Bearer ${agent.token}`,
        cookie: 'a=b',
        'accept-encoding': 'gzip',
        te: 'trailers',
      },
    })
    const [{ url, headers } = { url: '', headers: {} }] = asked
    expect(url).toBe(`${messages}?beta=true`)
    expect(Object.keys(headers).sort()).toEqual(
      [
        ...['accept-encoding', 'anthropic-beta', 'anthropic-version', 'connection', 'content-length', 'content-type'],
        ...['host', 'x-api-key', 'x-stainless-lang'],
      ].sort(),
    )
    expect(headers).toMatchObject({ 'accept-encoding': 'identity', 'x-api-key': vendorKeys.anthropic })
    expect(headers.host).toBe(vendor.url.slice('http://'.length))
  })

  test('no secret is in the log or in an answer', async () => {
    answerNext = (incoming) => incoming.socket.destroy()
    const { message } = await post(agent).then(
      () => expect.unreachable('the connection is cut'),
      (error: Error) => error,
    )
    for (const secret of [agent.token, ...Object.values(vendorKeys)]) {
      expect(relayed.chowder.logged.join('\n')).not.toContain(secret)
      expect(message).not.toContain(secret)
    }
    expect(relayed.chowder.logged.join('\n')).toContain('anthropic cannot be reached')
  })
})

describe('a token', () => {
  test('that was taken away is a 503, after which OpenClaw does not put the key on hold', async () => {
    const { statusCode, headers, body } = await post({ token: newRelayToken() })
    expect(statusCode).toBe(503)
    expect(headers['retry-after']).toBe('5')
    expect(await body.text()).toContain('has ended this token')
  })

  test('that is unknown, missing, or for another provider is refused in the words of the vendor', async () => {
    const bodies = []
    for (const [provider, path, headers] of [
      ['anthropic', messages, { 'x-api-key': 'nope' }],
      ['openai', '/v1/responses', { authorization: `Bearer ${agent.token}` }],
      ['gemini', '/v1beta/models/gemini-3-pro:generateContent', {}],
    ] as const) {
      const { statusCode, body } = await request(relayed.at(provider, path), { method: 'POST', headers, body: '{}' })
      expect(statusCode).toBe(401)
      bodies.push(await body.json())
    }
    expect(bodies).toMatchObject([
      { type: 'error', error: { type: 'authentication_error', message: expect.stringContaining('token') } },
      { error: { code: 'invalid_api_key', type: 'invalid_request_error' } },
      { error: { code: 401, status: 'UNAUTHENTICATED' } },
    ])
    expect(asked).toEqual([])
  })

  test('is dead within a second of a stop, a delete, a suspension and a rotation', async () => {
    const { chowder, organizationId, rotate, addAgent } = relayed
    const { pool, db } = chowder.database
    const newAgent = async (act: (id: string) => Promise<unknown>) => {
      const of = await addAgent()
      return { of, ms: await takenAfter(of, () => act(of.id)) }
    }
    const stopped = await newAgent(async (id) => {
      await pool.query('UPDATE instances SET ready_at = now(), observed_generation = generation WHERE id = $1', [id])
      await changeIntent(db, organizationId, id, 'stop')
    })
    const others = [
      await newAgent((id) => terminateInstance(db, organizationId, id)),
      await newAgent(rotate),
      await newAgent(() => pool.query('UPDATE organizations SET suspended_at = now() WHERE id = $1', [organizationId])),
    ]
    await pool.query('UPDATE organizations SET suspended_at = NULL WHERE id = $1', [organizationId])
    expect(Math.max(...[stopped, ...others].map(({ ms }) => ms))).toBeLessThan(1000)
    // A start makes the token of before no good again.
    await changeIntent(db, organizationId, stopped.of.id, 'start')
    expect(await refused(stopped.of)).toBe(true)
    await until('the suspension to be over', async () => !(await refused(agent)))
  })

  test('that is guessed costs no query, unless its checksum is right; refusals come a hundred a second at most', async () => {
    const query = vi.spyOn(relayed.chowder.database.pool, 'query')
    const lookUps = () => query.mock.calls.filter((call) => JSON.stringify(call).includes('relay_token_hash'))
    const guesses = 50
    const guess = (token: string, times = guesses) =>
      Promise.all(Array.from({ length: times }, () => refused({ token })))
    try {
      await sleep(600) // no call is open that is looked at again
      query.mockClear()
      const from = performance.now()
      expect(await guess(agent.token.replace(/.$/, (digit) => (digit === '0' ? '1' : '0')))).not.toContain(false)
      expect(performance.now() - from).toBeGreaterThan((guesses - 1) * 10)
      expect(lookUps()).toEqual([])
      expect(await guess(newRelayToken())).not.toContain(false)
      expect(lookUps()).not.toEqual([])
    } finally {
      query.mockRestore()
    }
    // The other calls do not wait. A hundred, since a refusal that would wait for more than a second is not given.
    const flood = guess('nope', 100).then(() => 'flood')
    expect(await Promise.race([flood, refused(agent)])).toBe(false)
    await flood
  })

  test('ends the calls that are open with it within a second of a stop, a delete, a suspension and a rotation', async () => {
    const { chowder, addAgent, rotate } = relayed
    const { pool, db } = chowder.database
    answerNext = (_, reply) => void reply.writeHead(200, { 'content-type': 'text/event-stream' }).write('data: 1\n\n')
    const { id: organizationId, key } = await chowder.signUp()
    const ends: Record<string, (id: string) => Promise<unknown>> = {
      stop: (id) => changeIntent(db, organizationId, id, 'stop'),
      delete: (id) => terminateInstance(db, organizationId, id),
      rotation: rotate,
      suspension: () => pool.query('UPDATE organizations SET suspended_at = now() WHERE id = $1', [organizationId]),
    }
    for (const [name, end] of Object.entries(ends)) {
      const own = await addAgent('anthropic', key)
      await pool.query('UPDATE instances SET ready_at = now(), observed_generation = generation WHERE id = $1', [
        own.id,
      ])
      const { body } = await post(own)
      await once(body, 'readable')
      const ended = body.text().catch((error: Error) => error.message)
      await end(own.id)
      const from = performance.now()
      expect(await ended, name).toMatch(/terminated|other side closed|aborted/)
      expect(performance.now() - from, `ms after the ${name}`).toBeLessThan(1000)
      expect(watched.at(-1)?.end, name).toBe('token refused')
    }
  })
})

describe('the key of the organization', () => {
  test('is the one of now at the next call, and a call that runs goes on with the one before', async () => {
    const { key } = await relayed.chowder.signUp({ providerKey: 'sk-first' })
    const own = await relayed.addAgent('anthropic', key)
    const set = (anthropic: string | null) =>
      relayed.chowder.call('PATCH', '/v1/organization', { key, body: { model_api_keys: { anthropic } } })
    let release = () => {}
    answerNext = async (_, reply) => {
      reply.writeHead(200).write('begun')
      await new Promise<void>((resolve) => {
        release = resolve
      })
      reply.end('ended')
    }
    const { body } = await post(own)
    await once(body, 'readable')
    await set('sk-second')
    answerNext = ok
    const keyOf = async () => {
      await (await post(own)).body.dump()
      return asked.at(-1)?.headers['x-api-key']
    }
    await until('the new key', async () => (await keyOf()) === 'sk-second', 1500)
    release()
    expect(await body.text()).toBe('begunended')

    await set(null)
    await until('no key', () => refused(own), 1500)
    const none = await post(own)
    expect(await none.body.json()).toMatchObject({
      error: {
        type: 'authentication_error',
        message: expect.stringMatching(/no anthropic key.*PATCH \/v1\/organization/),
      },
    })
  })
})

test.each([
  ['anthropic', 'GET', '/v1/models?limit=1', true],
  ['anthropic', 'GET', '/v1/models/claude-opus-5', true],
  ['anthropic', 'POST', '/v1/messages/count_tokens', true],
  ['anthropic', 'POST', '/v1/messages/batches', false],
  ['anthropic', 'GET', '/v1/messages', false],
  ['anthropic', 'GET', '/v1/models/..', false],
  ['anthropic', 'GET', '/v1/models/%2e%2e/files', false],
  ['anthropic', 'POST', '/v1/messages/../files', false],
  ['anthropic', 'POST', '//v1/messages', false],
  ['anthropic', 'GET', '/v1/files', false],
  ['anthropic', 'DELETE', '/v1/models/x', false],
  ['openai', 'POST', '/v1/chat/completions', true],
  ['openai', 'POST', '/v1/responses', true],
  ['openai', 'POST', '/v1/embeddings', true],
  ['openai', 'GET', '/v1/responses/resp_1', false],
  ['openai', 'POST', '/v1/files', false],
  ['openai', 'GET', '/v1/organization/usage/completions', false],
  ['gemini', 'POST', '/v1beta/models/gemini-3-pro:generateContent', true],
  ['gemini', 'POST', '/v1beta/models/gemini-3-pro:streamGenerateContent?alt=sse', true],
  ['gemini', 'POST', '/v1beta/models/x:batchEmbedContents', true],
  ['gemini', 'GET', '/v1beta/models', true],
  ['gemini', 'POST', '/v1beta/cachedContents', false],
  ['gemini', 'POST', '/v1beta/models/..:generateContent', false],
] as const)('%s %s %s is let through: %s', async (provider, method, path, isAllowed) => {
  const { token } = await relayed.addAgent(provider)
  // By hand: clients resolve `..` themselves.
  const socket = connect(relayed.port, '127.0.0.1')
  socket.write(
    `${method} /relay/${provider}${path} HTTP/1.1\r\nhost: relay\r\nconnection: close\r\nx-api-key: ${token}\r\ncontent-length: 0\r\n\r\n`,
  )
  let text = ''
  for await (const chunk of socket) text += chunk
  expect(text.split(' ')[1]).toBe(isAllowed ? '200' : '404')
  expect(asked.map(({ url }) => url)).toEqual(isAllowed ? [path] : [])
})

/** What the relay answers to bytes that no client would send, up to the end of the connection. */
async function answerTo(...lines: string[]): Promise<string> {
  const socket = connect(relayed.port, '127.0.0.1')
  socket.write(`${lines.join('\r\n')}\r\n\r\n`)
  let text = ''
  for await (const chunk of socket) text += chunk
  return text
}

test('a target of another form, a body of two lengths, and headers of headers are not let through', async () => {
  const token = `x-api-key: ${agent.token}`
  const post = `POST /relay/anthropic${messages} HTTP/1.1`
  const empty = 'content-length: 0'
  const close = 'connection: close'
  for (const lines of [
    [`POST http://127.0.0.1/relay/anthropic${messages} HTTP/1.1`, 'host: relay', token, close, empty],
    ['OPTIONS * HTTP/1.1', 'host: relay', token, close, empty],
    [post.replace('/relay/anthropic', '/relay/anthropic%2f..'), 'host: relay', token, close, empty],
    [post.replace('/relay/anthropic', '//relay/anthropic'), 'host: relay', token, close, empty],
    [post, 'host: relay', token, close, 'content-length: 4', 'transfer-encoding: chunked', '', '0', ''],
    [post, 'host: relay', token, close, 'content-length: 4', 'content-length: 0'],
  ]) {
    expect((await answerTo(...lines)).split(' ')[1], lines[0]).toMatch(/^40[047]$/)
  }
  expect(asked).toEqual([])
  const passed = [
    'host: evil',
    'connection: close, anthropic-version',
    'anthropic-version: 1',
    'x-http-method-override: GET',
  ]
  expect(await answerTo(post, token, empty, ...passed)).toContain(' 200 ')
  expect(asked[0]?.headers).toMatchObject({
    host: vendor.url.slice('http://'.length),
    'x-api-key': vendorKeys.anthropic,
  })
  expect(asked[0]?.headers).not.toHaveProperty('x-http-method-override')
})

describe('the bounds of a call', () => {
  test('a body that is too large is refused, before it is sent or while it is', async () => {
    const large = 41 * 1024 * 1024
    const declared = await request(relayed.at('anthropic', messages), {
      method: 'POST',
      headers: { 'x-api-key': agent.token },
      body: Buffer.alloc(large),
    }).catch((error: Error) => error)
    if (!(declared instanceof Error)) expect(declared.statusCode).toBe(413)
    expect(asked).toEqual([])
    const chunked = await request(relayed.at('anthropic', messages), {
      method: 'POST',
      headers: { 'x-api-key': agent.token },
      body: (async function* () {
        for (let sent = 0; sent < large; sent += 1024 * 1024) yield Buffer.alloc(1024 * 1024)
      })() as never,
    }).catch((error: Error) => error)
    if (!(chunked instanceof Error)) expect(chunked.statusCode).toBe(413)
    expect(asked).toHaveLength(1)
    expect(watched[0]?.end).toBe('too large')
  })

  test('an instance has a number of calls at the same time', async () => {
    const own = await relayed.addAgent()
    let waiting = 0
    const { promise, resolve } = Promise.withResolvers<void>()
    answerNext = async (_, reply) => {
      waiting += 1
      await promise
      reply.end()
    }
    const open = [post(own), post(own), post(own)]
    await until('the calls to be open', () => waiting === 3)
    const { statusCode, headers, body } = await post(own)
    expect([statusCode, headers['retry-after']]).toEqual([429, '1'])
    expect(await body.json()).toMatchObject({ error: { type: 'rate_limit_error' } })
    resolve()
    for (const { body } of await Promise.all(open)) await body.dump()
    expect(await refused(own)).toBe(false)
  })

  test('a client that leaves ends the call of the vendor, and a vendor that cuts its answer that of the client', async () => {
    const leaving = new AbortController()
    let cut = false
    answerNext = (_, reply) => {
      reply.once('close', () => {
        cut = true
      })
      reply.writeHead(200).write('begun')
    }
    const { body } = await post(agent, { signal: leaving.signal as never })
    body.on('error', () => {})
    await once(body, 'readable')
    leaving.abort()
    await until('the vendor to be told', () => cut, 2000)
    await until('the end', () => watched[0]?.end === 'client left', 2000)

    answerNext = (incoming, reply) => {
      reply.writeHead(200, { 'content-length': '100' }).write('begun')
      setTimeout(() => incoming.socket.destroy(), 20)
    }
    const { body: half } = await post(agent)
    await expect(half.text()).rejects.toThrow()
    expect(watched[1]?.end).toBe('vendor failed')
  })

  test('a client that leaves in the middle of its body is not taken for an outage of the vendor', async () => {
    const { token } = await relayed.addAgent()
    const logged = relayed.chowder.logged.length
    const socket = connect(relayed.port, '127.0.0.1')
    socket.write(
      `POST /relay/anthropic${messages} HTTP/1.1\r\nhost: relay\r\nx-api-key: ${token}\r\ncontent-length: 10\r\n\r\nhalf`,
    )
    await until('the vendor to be asked', () => asked.length === 1)
    socket.destroy()
    await until('the end', () => watched[0]?.end !== null)
    expect(watched[0]?.end).toBe('client left')
    expect(relayed.chowder.logged.slice(logged).join()).not.toContain('cannot be reached')
  })

  test('a client that does not read makes the vendor wait', async () => {
    const whole = 64 * 1024 * 1024
    let written = 0
    answerNext = async (_, reply) => {
      const gone = new AbortController()
      reply.once('close', () => gone.abort())
      reply.writeHead(200)
      for (const piece = Buffer.alloc(64 * 1024); written < whole && !reply.destroyed; written += piece.length) {
        if (!reply.write(piece)) await once(reply, 'drain', { signal: gone.signal }).catch(() => {})
      }
      reply.end()
    }
    const socket = connect(relayed.port, '127.0.0.1')
    socket.write(
      `POST /relay/anthropic${messages} HTTP/1.1\r\nhost: relay\r\nx-api-key: ${agent.token}\r\ncontent-length: 0\r\n\r\n`,
    )
    socket.pause()
    await until('the vendor to write', () => written > 0)
    let before = -1
    await until('the vendor to wait', async () => {
      const isStill = before === written
      before = written
      await sleep(200)
      return isStill
    })
    expect(written).toBeLessThan(whole / 2)
    socket.destroy()
  })
})

describe('what must not reach a vendor', () => {
  let openai: RelayedAgent
  let relay: Awaited<ReturnType<typeof startRelay>>
  beforeAll(async () => {
    const baseUrls = { anthropic: vendor.url, openai: vendor.url, gemini: vendor.url }
    const address = { host: '127.0.0.1', port: await freePort() }
    relay = await startRelay(relayed.chowder.deps, { baseUrls, ...address, processId: newId() })
    openai = await relayed.addAgent('openai')
  })
  afterAll(() => relay.close(0))
  const send = async ({ token }: RelayedAgent, provider: ModelProvider, path: string, body: object) => {
    const url = `http://127.0.0.1:${relay.port}/relay/${provider}${path}`
    const answer = await request(url, { method: 'POST', headers: { 'x-api-key': token }, body: JSON.stringify(body) })
    return { status: answer.statusCode, text: await answer.body.text() }
  }

  test('T7: work in the background, whose usage no answer tells', async () => {
    const refused = await send(openai, 'openai', '/v1/responses', { model: 'gpt-5', background: true, input: 'x' })
    expect([refused.status, refused.text]).toEqual([400, expect.stringContaining('background')])
    expect(asked).toEqual([])
    const body = { model: 'gpt-5', background: false, input: 'x' }
    expect((await send(openai, 'openai', '/v1/responses', body)).status).toBe(200)
  })

  const long = 'x'.repeat(600_000)
  test.each([
    ['anthropic', messages, { tools: [{ type: 'web_search_20250305', name: 'web_search' }] }],
    ['anthropic', messages, { messages: long, tools: [{ name: 'a' }, { type: 'web_fetch_20250910' }] }],
    ['anthropic', messages, { mcp_servers: [{ type: 'url', url: 'https://evil.example', name: long }] }],
    ['openai', '/v1/responses', { tools: [{ type: 'mcp', server_url: 'https://evil.example' }] }],
    ['openai', '/v1/responses', { tools: [{ type: 'web_search_preview' }] }],
    ['openai', '/v1/chat/completions', { web_search_options: {} }],
    ['gemini', '/v1beta/models/gemini-2.5-flash:generateContent', { tools: [{ url_context: {} }] }],
    ['gemini', '/v1beta/models/gemini-2.5-flash:generateContent', { tools: [{ googleSearch: {} }] }],
  ] as const)(
    'T10: a tool that %s runs itself, unless the egress of the agent is open',
    async (provider, path, body) => {
      const agent = await relayed.addAgent(provider)
      const egress = (policy: object | null) =>
        relayed.chowder.database.pool.query('UPDATE instances SET egress = $2 WHERE id = $1', [agent.id, policy])
      for (const policy of [
        { mode: 'none', hosts: [] },
        { mode: 'allowlist', hosts: ['evil.example'] },
      ]) {
        await egress(policy)
        await sleep(300)
        asked.length = 0
        const { status, text } = await send(agent, provider, path, body)
        expect([status, text]).toEqual([400, expect.stringContaining('egress')])
        expect(asked.map((one) => one.body.length)).toEqual(asked.map(() => 0)) // none came whole
        const own = { tools: [{ name: 'web_search', description: 'type: web_search', input_schema: {} }] }
        expect((await send(agent, provider, path, own)).status).toBe(200)
      }
      await egress(null)
      await sleep(300)
      expect((await send(agent, provider, path, body)).status).toBe(200)
    },
  )
})

test('T2: requests that are sent without a pause hold up nobody else, and close their connection', async () => {
  const attacker = await startFlood(relayed.port, '/relay', 128)
  try {
    const times: number[] = []
    for (let call = 0; call < 20; call += 1) {
      const from = performance.now()
      const { statusCode, body } = await post(agent)
      await body.dump()
      expect(statusCode).toBe(200)
      times.push(performance.now() - from)
      await sleep(50)
    }
    // Some 2 s, and 30 s where the server reads whole pieces: it then stands still for seconds.
    expect(times.reduce((sum, time) => sum + time, 0)).toBeLessThan(10_000)
  } finally {
    attacker.kill('SIGKILL')
  }
  const socket = connect(relayed.port, '127.0.0.1').on('error', () => {})
  let answer = ''
  socket.on('data', (bytes) => {
    answer += bytes
  })
  socket.write('GET /relay/anthropic/v1/models HTTP/1.1\r\nhost: x\r\n\r\n'.repeat(2))
  await once(socket, 'close')
  expect(answer.split('HTTP/1.1').length).toBeLessThan(3)
  // One after the other they are answered.
  const agentOfOne = new Agent({ connections: 1 })
  for (let call = 0; call < 3; call += 1) {
    const url = relayed.at('anthropic', messages)
    const options = { method: 'POST' as const, headers: { 'x-api-key': agent.token }, body: 'x'.repeat(200_000) }
    const { statusCode, body } = await request(url, { ...options, dispatcher: agentOfOne })
    await body.dump()
    expect(statusCode).toBe(200)
    expect(asked.at(-1)?.body.length).toBe(200_000)
  }
  await agentOfOne.close()
})

describe('the connections of clients', () => {
  async function bounded(connections: { max?: number; silentMs?: number }) {
    const baseUrls = { anthropic: vendor.url, openai: vendor.url, gemini: vendor.url }
    const port = await freePort()
    const relay = await startRelay(relayed.chowder.deps, {
      baseUrls,
      host: '127.0.0.1',
      port,
      processId: newId(),
      connections,
    })
    return Object.assign(relay, { url: `http://127.0.0.1:${port}/relay/anthropic${messages}` })
  }
  const headers = () => ({ 'x-api-key': agent.token })

  test('that have no call make room for others', async () => {
    const relay = await bounded({ max: 4 })
    const sockets: Socket[] = []
    const fill = async () => {
      for (let opened = 0; opened < 8; opened += 1) {
        const socket = connect(relay.port, '127.0.0.1').on('error', () => {})
        sockets.push(socket)
        await once(socket, 'connect')
      }
    }
    try {
      await fill()
      answerNext = async (_, reply) => {
        reply.writeHead(200).write('begun')
        await fill()
        reply.end('ended')
      }
      const { body } = await request(relay.url, { method: 'POST', headers: headers(), body: '{}' })
      expect(await body.text()).toBe('begunended')
    } finally {
      for (const socket of sockets) socket.destroy()
      await relay.close(0)
    }
  })

  test('whose client does not read are cut after a time', async () => {
    const relay = await bounded({ silentMs: 1000 })
    let isCut = false
    answerNext = (_, reply) => {
      reply.once('close', () => {
        isCut = true
      })
      reply.writeHead(200).write(Buffer.alloc(64 * 1024 * 1024))
    }
    const socket = connect(relay.port, '127.0.0.1').on('error', () => {})
    socket.write(
      `POST /relay/anthropic${messages} HTTP/1.1\r\nhost: relay\r\nx-api-key: ${agent.token}\r\ncontent-length: 0\r\n\r\n`,
    )
    socket.pause()
    try {
      await until('the call to be cut', () => isCut, 10_000)
    } finally {
      socket.destroy()
      await relay.close(0)
    }
  })
})

describe('a vendor that asks to wait', () => {
  const limit = (retryAfter: string) => (_: IncomingMessage, reply: ServerResponse) =>
    reply.writeHead(429, { 'retry-after': retryAfter }).end('{}')
  const newOrganization = async () => {
    const { key } = await relayed.chowder.signUp({ providerKey: `sk-${Math.random()}` })
    return Promise.all([relayed.addAgent('anthropic', key), relayed.addAgent('anthropic', key)])
  }

  test('has the other agents of the key wait in the relay, and those of other keys not', async () => {
    const [first, second] = await newOrganization()
    answerNext = limit('1')
    const { statusCode, headers, body } = await post(first)
    await body.dump()
    expect([statusCode, headers['retry-after']]).toEqual([429, '1'])
    answerNext = ok
    const from = performance.now()
    const others = [post(second), post(second), post(second)]
    expect(await refused(agent)).toBe(false)
    expect(performance.now() - from).toBeLessThan(500)
    for (const answer of await Promise.all(others)) {
      expect(answer.statusCode).toBe(200)
      await answer.body.dump()
    }
    const times = asked.slice(2).map(({ at }) => at - from)
    expect(Math.min(...times)).toBeGreaterThan(850)
    // Not all at once: they are sent 100 ms apart, and a busy machine may read them later.
    expect(Math.max(...times) - Math.min(...times)).toBeGreaterThan(10)
    expect(await refused(second)).toBe(false)
  })

  test('for too long gets the call all the same, and answers it itself', async () => {
    const [first, second] = await newOrganization()
    answerNext = limit('30')
    await (await post(first)).body.dump()
    const from = performance.now()
    const { statusCode, headers, body } = await post(second)
    await body.dump()
    expect([statusCode, headers['retry-after']]).toEqual([429, '30'])
    expect(performance.now() - from).toBeGreaterThan(1400)
  })
})

describe('the address of a relay', () => {
  const settings = () => {
    const baseUrls = { anthropic: vendor.url, openai: vendor.url, gemini: vendor.url }
    return { baseUrls, host: '127.0.0.1', port: relayed.port, processId: newId() }
  }

  test('is shared by the relays of an installation, of which one may end', async () => {
    const second = await startRelay(relayed.chowder.deps, settings())
    for (let call = 0; call < 20; call += 1) expect(await refused(agent)).toBe(false)
    await second.close(0)
    await until('the first one alone', async () => !(await refused(agent).catch(() => true)))
    for (let call = 0; call < 10; call += 1) expect(await refused(agent)).toBe(false)
  })

  test('is refused to that of another one, and while another program listens there', async () => {
    const other = await openRelayedChowder(vendor.url)
    try {
      await expect(startRelay(other.chowder.deps, settings())).rejects.toThrow(
        /is the relay of another Chowder.*RELAY_PORT/,
      )
      const port = Number(new URL(vendor.url).port)
      await expect(startRelay(other.chowder.deps, { ...settings(), port })).rejects.toThrow(
        /taken by another program.*RELAY_PORT/,
      )
    } finally {
      await other.close()
    }
  })

  test('lets open calls end before it closes', async () => {
    const own = await openRelayedChowder(vendor.url)
    const { token } = await own.addAgent()
    const { promise, resolve } = Promise.withResolvers<void>()
    answerNext = async (_, reply) => {
      reply.writeHead(200).write('begun')
      await promise
      reply.end('ended')
    }
    await own.close()
    const chowder = relayed.chowder.deps
    const relay = await startRelay(chowder, { ...settings(), port: own.port })
    expect(token).not.toBe('')
    const { body } = await request(`http://127.0.0.1:${own.port}/relay/anthropic${messages}`, {
      method: 'POST',
      headers: { 'x-api-key': agent.token },
      body: '{}',
    })
    await once(body, 'readable')
    const closing = relay.close(5000)
    await sleep(100)
    resolve()
    expect(await body.text()).toBe('begunended')
    await closing
  })
})
