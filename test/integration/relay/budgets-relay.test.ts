import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { finished } from 'node:stream/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { request } from 'undici'
import { afterAll, beforeEach, describe, expect, test, vi } from 'vitest'
import { startRelay } from '#composition/relay.ts'
import type { ModelProvider } from '#database/schema.ts'
import { freePort } from '#platform/free-port.ts'
import { newId } from '#platform/ids.ts'
import { listenLocally } from '../../support/local-server.ts'
import { openRelayedChowder, type RelayedAgent } from '../../support/relayed-chowder.ts'
import { until } from '../../support/until.ts'

/** A fake of all vendors, which answers what the test says. */
let answerNext: (asked: IncomingMessage, reply: ServerResponse) => unknown
let askedOfVendor = 0
/** Answers whole requests only, as vendors do. */
const fakeVendor = createServer(async (asked, reply) => {
  await finished(asked.resume()).catch(() => {})
  if (!asked.complete) return
  askedOfVendor += 1
  await answerNext(asked, reply)
})

/** Another relay of the same installation. */

const vendor = await listenLocally(fakeVendor)
const relayed = await openRelayedChowder(vendor.url, { places: { perInstance: 100 } })
const baseUrls = { anthropic: vendor.url, openai: vendor.url, gemini: vendor.url }
const address = { host: '127.0.0.1', port: await freePort() }
const relay = await startRelay(relayed.chowder.deps, {
  baseUrls,
  ...address,
  processId: newId(),
  places: { perInstance: 100 },
})
const second = { relay, url: `http://127.0.0.1:${address.port}` }
afterAll(async () => {
  await second.relay.close(0)
  await relayed.close()
  await vendor.close()
})
beforeEach(() => {
  askedOfVendor = 0
  answerNext = uses(60, 40)
})

const query = async (text: string, values: unknown[] = []) =>
  (await relayed.chowder.database.pool.query(text, values)).rows

/** Answers after a moment, with this usage. */
const uses =
  (input: number, output: number, { model = 'claude-haiku-4-5', ms = 0 } = {}) =>
  async (_: IncomingMessage, reply: ServerResponse) => {
    await sleep(ms)
    reply.setHeader('content-type', 'application/json')
    reply.end(JSON.stringify({ model, usage: { input_tokens: input, output_tokens: output } }))
  }

/** A request that may use 100 tokens: a quarter of its bytes, and its output. */
const body = (model = 'claude-haiku-4-5', maxTokens = 50) =>
  JSON.stringify({ model, messages: [{ role: 'user', content: 'x' }], max_tokens: maxTokens }).padEnd(200, ' ')

interface Asked {
  provider?: ModelProvider
  path?: string
  body?: string
  relay?: string
}
async function ask(agent: RelayedAgent, options: Asked = {}) {
  const { provider = 'anthropic', path = '/v1/messages', relay = relayed.relayUrl } = options
  const answer = await request(relayed.at(provider, path).replace(relayed.relayUrl, relay), {
    method: 'POST',
    headers: { 'x-api-key': agent.token, 'content-type': 'application/json' },
    body: options.body ?? body(),
  })
  return { status: answer.statusCode, headers: answer.headers, text: await answer.body.text() }
}

interface Owner {
  key: string
  agent: RelayedAgent
  organizationId: string
}
async function newOwner(): Promise<Owner> {
  const { key, id: organizationId } = await relayed.chowder.signUp({ providerKey: 'sk-own' })
  return { key, agent: await relayed.addAgent('anthropic', key), organizationId }
}
async function setBudgets({ key }: Pick<Owner, 'key'>, budgets: object[], path = '/v1/organization') {
  const { status, body: answer } = await relayed.chowder.call('PATCH', path, { key, body: { budgets } })
  expect(status, JSON.stringify(answer)).toBe(200)
  await sleep(300) // the grant of a token is cached for less
  return answer.budgets
}
const daily = (tokens: number, more: object = {}) => ({ name: 'daily', limit: { tokens }, per: 'day', ...more })
const usedBy = async ({ key }: Pick<Owner, 'key'>, path = '/v1/organization') =>
  (await relayed.chowder.call('GET', path, { key })).body.budgets[0].used as number
const usedUntil = (owner: Owner, used: number, path?: string) =>
  until(`${used} to be used`, async () => (await usedBy(owner, path)) >= used)

describe('a budget of tokens', () => {
  test('refuses calls once it is used up, and overshoots by the calls that are open at once', async () => {
    const owner = await newOwner()
    await setBudgets(owner, [daily(1000)])
    answerNext = uses(60, 40, { ms: 300 })
    const urls = [relayed.relayUrl, second.url]
    const open = Array.from({ length: 12 }, (_, at) => ask(owner.agent, { relay: urls[at % 2] as string }))
    for (const { status } of await Promise.all(open)) expect(status).toBe(200)
    await usedUntil(owner, 1200)
    await sleep(250) // what is used is cached for less
    askedOfVendor = 0
    for (const relay of urls) {
      const { status, text, headers } = await ask(owner.agent, { relay })
      expect(status).toBe(429)
      expect(headers['x-should-retry']).toBe('false')
      expect(headers).not.toHaveProperty('retry-after')
      expect(JSON.parse(text)).toMatchObject({
        type: 'error',
        error: {
          type: 'rate_limit_error',
          message: expect.stringMatching(
            /^The budget “daily” of the organization is used up until \d{4}-\d\d-\d\d 00:00 \(UTC\), when it resets\. Daily usage limit: 1,000 tokens\.$/,
          ),
        },
      })
    }
    expect(askedOfVendor).toBe(0)
    // Raised, it allows calls again, and what was used stays.
    await setBudgets(owner, [daily(2000)])
    expect((await ask(owner.agent)).status).toBe(200)
    await usedUntil(owner, 1300)
  })

  test('costs a call no statement of its own', async () => {
    const owner = await newOwner()
    await setBudgets(owner, [daily(10_000_000)])
    const asked = vi.spyOn(relayed.chowder.deps.db.$client, 'query')
    for (let call = 0; call < 50; call += 1) expect((await ask(owner.agent)).status).toBe(200)
    const names = asked.mock.calls.map(([text]) => (text as unknown as { name?: string }).name)
    asked.mockRestore()
    expect(names.filter((name) => /budget|asked/.test(name ?? ''))).toEqual([])
    expect(names.filter((name) => name === 'find_grants').length).toBeLessThan(50)
    await usedUntil(owner, 5000)
  })

  test('of calls counts each of them', async () => {
    const owner = await newOwner()
    await setBudgets(owner, [{ name: 'calls', limit: { calls: 3 }, per: 'hour' }])
    for (let call = 0; call < 3; call += 1) expect((await ask(owner.agent)).status).toBe(200)
    await usedUntil(owner, 3)
    await sleep(250)
    expect((await ask(owner.agent)).text).toContain('Hourly usage limit: 3 calls.')
  })

  describe('T7: counts a call whose vendor tells no usage with all that it may have used', () => {
    const silent = (_: IncomingMessage, reply: ServerResponse) =>
      reply.setHeader('content-type', 'application/json').end(' '.repeat(320))

    test.each([
      ['the tokens that it asks for', body('claude-haiku-4-5', 5000), 5000],
      ['the most of its model', body('claude-haiku-4-5', 10 ** 9), 64_000],
      ['an answer that is longer', body('claude-haiku-4-5', 1), 320 / 32],
    ])('%s', async (_, asked, output) => {
      const owner = await newOwner()
      await setBudgets(owner, [daily(1_000_000)])
      answerNext = silent
      expect((await ask(owner.agent, { body: asked })).status).toBe(200)
      await usedUntil(owner, 60)
      expect(await usedBy(owner)).toBe(200 / 4 + output)
    })

    test('of a client that leaves before the answer', async () => {
      const owner = await newOwner()
      await setBudgets(owner, [daily(1_000_000)])
      answerNext = () => {}
      const call = request(relayed.at('anthropic', '/v1/messages'), {
        method: 'POST',
        headers: { 'x-api-key': owner.agent.token },
        body: body('claude-haiku-4-5', 5000),
        signal: AbortSignal.timeout(500),
      })
      await expect(call).rejects.toThrow()
      await usedUntil(owner, 5050)
      expect(await usedBy(owner)).toBe(5050)
    })

    test('a stream, which its vendor stops, with no more than can have been written in its time', async () => {
      const owner = await newOwner()
      await setBudgets(owner, [daily(1_000_000)])
      answerNext = async (_, reply) => {
        reply.writeHead(200, { 'content-type': 'text/event-stream' }).write('event: ping\n\n')
        await sleep(500)
        reply.destroy()
      }
      const streamed = JSON.stringify({ model: 'claude-haiku-4-5', stream: true, max_tokens: 60_000 }).padEnd(200)
      await ask(owner.agent, { body: streamed }).catch(() => {})
      await usedUntil(owner, 100)
      expect(await usedBy(owner)).toBeGreaterThan(50 + 100)
      expect(await usedBy(owner)).toBeLessThan(10_000)
    })

    test('a continuation of a conversation that the vendor holds, with the window of its model', async () => {
      const { key } = await relayed.chowder.signUp()
      await relayed.chowder.call('PATCH', '/v1/organization', { key, body: { model_api_keys: { openai: 'k' } } })
      const agent = await relayed.addAgent('openai', key)
      await setBudgets({ key }, [daily(10_000_000)])
      answerNext = silent
      const continued = JSON.stringify({ model: 'gpt-5', previous_response_id: 'resp_1', max_output_tokens: 10 })
      expect((await ask(agent, { provider: 'openai', path: '/v1/responses', body: continued })).status).toBe(200)
      await until('the window', async () => (await usedBy({ key })) > 100_000)
    })
  })

  test.each([
    ['openai', '/v1/responses', { error: { code: 'rate_limit_exceeded', type: 'invalid_request_error' } }],
    [
      'gemini',
      '/v1beta/models/gemini-2.5-flash:generateContent',
      { error: { code: 429, status: 'RESOURCE_EXHAUSTED' } },
    ],
  ] as const)('is refused in the words of %s', async (provider, path, shape) => {
    const { key } = await relayed.chowder.signUp()
    await relayed.chowder.call('PATCH', '/v1/organization', { key, body: { model_api_keys: { [provider]: 'k' } } })
    const agent = await relayed.addAgent(provider, key)
    await setBudgets({ key }, [daily(1)])
    const tells = { usage: { input_tokens: 3, output_tokens: 3 }, usageMetadata: { promptTokenCount: 6 } }
    answerNext = (_, reply) => reply.setHeader('content-type', 'application/json').end(JSON.stringify(tells))
    expect((await ask(agent, { provider, path })).status).toBe(200)
    await until('the budget to be used', async () => (await usedBy({ key })) >= 6)
    await until('no room', async () => (await ask(agent, { provider, path })).text.includes('used up'))
    const { status, text } = await ask(agent, { provider, path })
    expect(status).toBe(429)
    expect(JSON.parse(text)).toMatchObject(shape)
    expect(JSON.parse(text).error.message).toContain('is used up until')
  })

  test('is not free for calls that count tokens only', async () => {
    const owner = await newOwner()
    await setBudgets(owner, [daily(1)])
    await ask(owner.agent)
    await usedUntil(owner, 100)
    expect((await ask(owner.agent, { path: '/v1/messages/count_tokens' })).status).toBe(200)
  })
})

describe('all budgets that apply must allow a call', () => {
  test('of the instance and of the organization', async () => {
    const owner = await newOwner()
    const other = await relayed.addAgent('anthropic', owner.key)
    await setBudgets(owner, [daily(1_000_000)])
    await setBudgets(owner, [daily(100)], `/v1/instances/${other.id}`)
    expect((await ask(other)).status).toBe(200)
    await until('the instance to be used up', async () => (await ask(other)).text.includes('used up'))
    expect((await ask(other)).text).toContain('The budget “daily” of this agent is used up')
    expect((await ask(owner.agent)).status).toBe(200)
    await usedUntil(owner, 200)
  })

  test('and none of another organization, nor one that only warns', async () => {
    const [owner, foreign] = [await newOwner(), await newOwner()]
    await setBudgets(foreign, [daily(1)])
    await setBudgets(owner, [daily(1, { mode: 'warn' })])
    for (let call = 0; call < 3; call += 1) expect((await ask(owner.agent)).status).toBe(200)
    await usedUntil(owner, 300)
    expect(await usedBy(foreign)).toBe(0)
  })
})

describe('a budget in US dollars', () => {
  test('counts list prices, and a model without a price by its own one or not at all', async () => {
    const owner = await newOwner()
    const dollars = (more: object) => ({ name: 'money', limit: { usd: 1 }, per: 'month', ...more })
    await setBudgets(owner, [dollars({ unpriced_price: 10 })])
    answerNext = uses(1000, 100)
    expect((await ask(owner.agent)).status).toBe(200)
    await until('a cost', async () => (await usedBy(owner)) > 0)
    expect(await usedBy(owner)).toBeCloseTo((1000 * 1 + 100 * 5) / 1e6, 9) // Claude Haiku 4.5
    answerNext = uses(1000, 1000, { model: 'own-model' })
    expect((await ask(owner.agent, { body: body('own-model') })).status).toBe(200)
    await until('a price', async () => (await usedBy(owner)) > 0.02)
    expect(await usedBy(owner)).toBeCloseTo(0.0015 + 0.02, 9)
    await setBudgets(owner, [dollars({ unpriced_price: null })])
    const { status, text } = await ask(owner.agent, { body: body('own-model') })
    expect([status, JSON.parse(text).error.message]).toEqual([
      400,
      'The budget “money” of the organization refuses models without a known price, such as "own-model".',
    ])
    expect((await ask(owner.agent)).status).toBe(200)
  })
})

describe('a budget of each end user', () => {
  /** A request in a session; OpenClaw names the session after the messages. */
  const inSession = (name: string | null, { messageBytes = 1, channel = 'webchat' } = {}) =>
    JSON.stringify({
      model: 'claude-haiku-4-5',
      messages: [{ role: 'user', content: 'x'.repeat(messageBytes) }],
      max_tokens: 50,
      ...(name && { system: `You help.\nRuntime: agent=main | session=agent:main:${name} | channel=${channel}` }),
    })
  const perUser = (tokens: number, more: object = {}) => daily(tokens, { scope: 'end_user', ...more })
  /** Notes that the latest turns of sessions were of these end users. */
  const note = async ({ organizationId, agent }: Owner, users: Record<string, string>) => {
    for (const [session, endUser] of Object.entries(users))
      await query(
        `INSERT INTO session_end_users (organization_id, instance_id, session, end_user) VALUES ($1, $2, $3, $4)
         ON CONFLICT (instance_id, session) DO UPDATE SET end_user = excluded.end_user`,
        [organizationId, agent.id, session, endUser],
      )
  }

  test('counts the calls in the sessions of each, and refuses those of the one who has used it up', async () => {
    const owner = await newOwner()
    await setBudgets(owner, [perUser(200)])
    await note(owner, { 's-1': 'ann', 's-2': 'ann', 's-3': 'bob' })
    for (const session of ['s-1', 's-2', 's-3', 's-4'])
      expect((await ask(owner.agent, { body: inSession(session) })).status).toBe(200)
    await usedUntil(owner, 200)
    await sleep(250)
    for (const session of ['s-1', 's-2']) {
      const { status, text } = await ask(owner.agent, { body: inSession(session) })
      expect(status).toBe(429)
      expect(text).toContain('The budget “daily” of this end user is used up until')
    }
    for (const session of ['s-3', 's-4', null])
      expect((await ask(owner.agent, { body: inSession(session) })).status).toBe(200)
    const { body: events } = await relayed.chowder.call('GET', '/v1/organization/events?type=budget.reached', owner)
    expect(events.map(({ reason }: { reason: string }) => reason)).toContain(
      '100 % of 200 tokens in this day, by the end user ann',
    )
  })

  test('of an instance counts the calls of this instance only', async () => {
    const owner = await newOwner()
    const other = { ...owner, agent: await relayed.addAgent('anthropic', owner.key) }
    await setBudgets(owner, [perUser(100)], `/v1/instances/${owner.agent.id}`)
    await note(owner, { 's-1': 'ann' })
    await note(other, { 's-1': 'ann' })
    expect((await ask(owner.agent, { body: inSession('s-1') })).status).toBe(200)
    await usedUntil(owner, 100, `/v1/instances/${owner.agent.id}`)
    await sleep(250)
    expect((await ask(owner.agent, { body: inSession('s-1') })).status).toBe(429)
    expect((await ask(other.agent, { body: inSession('s-1') })).status).toBe(200)
  })

  test('refuses a call that names its session behind a MiB of messages', async () => {
    const owner = await newOwner()
    await setBudgets(owner, [perUser(1)])
    await note(owner, { 's-1': 'ann' })
    const long = (session: string) => ask(owner.agent, { body: inSession(session, { messageBytes: 1024 * 1024 }) })
    answerNext = uses(60, 40, { ms: 300 })
    expect((await long('s-1')).status).toBe(200)
    await usedUntil(owner, 100)
    await sleep(250)
    expect(await long('s-1')).toMatchObject({ status: 429, headers: { 'x-should-retry': 'false' } })
    expect((await long('s-2')).status).toBe(200)
    expect(await usedBy(owner)).toBe(100)
  })

  test('that cannot be read refuses calls for that time', async () => {
    const owner = await newOwner()
    await setBudgets(owner, [perUser(1000)])
    const { $client } = relayed.chowder.deps.db
    const query = $client.query.bind($client) as (...asked: unknown[]) => unknown
    const failing = vi.spyOn($client, 'query').mockImplementation(((...asked: [{ name?: string }]) => {
      if (asked[0].name === 'find_user_budgets') return Promise.reject(new Error('planted'))
      return query(...asked)
    }) as never)
    const { status, text, headers } = await ask(owner.agent, { body: inSession('s-1') })
    failing.mockRestore()
    expect(status).toBe(503)
    expect(text).toContain('The budgets of this call cannot be read now')
    expect(headers).toHaveProperty('retry-after')
    expect((await ask(owner.agent, { body: inSession('s-1') })).status).toBe(200)
  })

  describe('unattended calls', () => {
    const cron = inSession('cron:1')
    const heartbeat = inSession('main')
    const path = ({ agent }: Owner) => `/v1/instances/${agent.id}`
    /** Calls of the last minutes, as the relay writes them. */
    const made = ({ organizationId, agent }: Owner, count: number, cause: string | null) =>
      query(
        `INSERT INTO model_calls (id, organization_id, instance_id, cause, provider, began_at, outcome)
         SELECT gen_random_uuid(), $1, $2, $3, 'anthropic', now(), 'answered' FROM generate_series(1, $4)`,
        [organizationId, agent.id, cause, count],
      )
    const events = async (owner: Owner) =>
      (await relayed.chowder.call('GET', `${path(owner)}/events?type=budget.reached`, owner)).body.map(
        ({ subject, reason }: { subject: string; reason: string }) => `${subject}: ${reason}`,
      )

    test('end at 200 an hour without any budget being set, by an event and a refusal', async () => {
      const owner = await newOwner()
      await made(owner, 199, 'cron')
      answerNext = uses(60, 40, { ms: 300 })
      expect((await ask(owner.agent, { body: cron })).status).toBe(200)
      await until('the event', async () => (await events(owner)).length > 0)
      expect(await events(owner)).toEqual(['unattended: 100 % of 200 unattended calls in this hour'])
      await sleep(250)
      const { status, text, headers } = await ask(owner.agent, { body: cron })
      expect([status, headers['x-should-retry']]).toEqual([429, 'false'])
      expect(text).toMatch(
        /The budget “unattended” of unattended calls of this agent is used up until .*:00 \(UTC\).* Hourly usage limit: 200 calls\./,
      )
      for (const body of [
        heartbeat,
        inSession('subagent:1'),
        inSession(null),
        inSession('main', { messageBytes: 1e6 }),
      ])
        expect((await ask(owner.agent, { body })).status).toBe(429)
      for (const body of [inSession('s-1'), inSession('main', { channel: 'telegram' })])
        expect((await ask(owner.agent, { body })).status).toBe(200)
      const other = await relayed.addAgent('anthropic', owner.key)
      expect((await ask(other, { body: cron })).status).toBe(200)
    })

    test('are those of cron, and others while no person has asked for an hour', async () => {
      const owner = await newOwner()
      const asked = { ...owner, agent: await relayed.addAgent('anthropic', owner.key) }
      await setBudgets(owner, [{ name: 'few', scope: 'unattended', limit: { calls: 5 }, per: 'hour' }])
      await made(asked, 1, 'channel')
      await made(asked, 10, null)
      await made(asked, 10, 'subagent')
      expect(await usedBy(owner)).toBe(0)
      await made(owner, 3, null)
      await made(owner, 2, 'subagent')
      expect(await usedBy(owner)).toBe(5)
      await sleep(250)
      expect((await ask(owner.agent, { body: heartbeat })).status).toBe(429)
      // A turn of the API in the session of heartbeats is allowed at once.
      await query(
        `INSERT INTO responses (id, organization_id, instance_id, session_key, status)
         VALUES ($1, $2, $3, 'main', 'in_progress')`,
        [newId(), owner.organizationId, owner.agent.id],
      )
      expect((await ask(owner.agent, { body: heartbeat })).status).toBe(200)
      expect((await ask(owner.agent, { body: cron })).status).toBe(429)
      expect((await ask(asked.agent, { body: heartbeat })).status).toBe(200)
    })

    test('have the limit of the instance, else that of its organization, else the default', async () => {
      const owner = await newOwner()
      const limit = (calls: number, more: object = {}) => ({
        ...{ name: 'own', scope: 'unattended', limit: { calls }, per: 'hour' },
        ...more,
      })
      await setBudgets(owner, [limit(3)])
      await made(owner, 3, 'cron')
      await sleep(250)
      expect((await ask(owner.agent, { body: cron })).text).toContain('Hourly usage limit: 3 calls.')
      await setBudgets(owner, [limit(1000, { mode: 'warn' })], path(owner))
      await made(owner, 250, 'cron')
      await sleep(250)
      expect((await ask(owner.agent, { body: cron })).status).toBe(200)
      expect(await events(owner)).toEqual(['own: 100 % of 3 unattended calls in this hour'])
    })
  })
})

test('an event says once in a period that 50, 80 and 100 % are used', async () => {
  const owner = await newOwner()
  await setBudgets(owner, [daily(1000, { mode: 'warn' })], `/v1/instances/${owner.agent.id}`)
  const reached = async () => {
    const path = `/v1/instances/${owner.agent.id}/events?type=budget.reached`
    return (await relayed.chowder.call('GET', path, { key: owner.key })).body
      .map(({ subject, reason }: { subject: string; reason: string }) => `${subject}: ${reason}`)
      .reverse()
  }
  const at = (percent: number, tokens = 1000) => `daily: ${percent} % of ${tokens} tokens in this day`
  answerNext = uses(250, 300)
  await ask(owner.agent)
  await until('the first event', async () => (await reached()).length === 1)
  expect(await reached()).toEqual([at(50)])
  for (let call = 0; call < 3; call += 1) await ask(owner.agent)
  await usedUntil(owner, 2200, `/v1/instances/${owner.agent.id}`)
  expect(await reached()).toEqual([at(50), at(80), at(100)])
  await setBudgets(owner, [daily(4000, { mode: 'warn' })], `/v1/instances/${owner.agent.id}`)
  for (let call = 0; call < 2; call += 1) await ask(owner.agent)
  await usedUntil(owner, 3300, `/v1/instances/${owner.agent.id}`)
  expect(await reached()).toEqual([at(50), at(80), at(100), at(80, 4000)])
})

describe('periods', () => {
  test.each([
    ['day', 'Europe/Berlin', '2026-03-29T05:00Z', '2026-03-28T23:00Z', '2026-03-29T22:00Z'], // 23 hours
    ['day', 'Europe/Berlin', '2026-10-25T05:00Z', '2026-10-24T22:00Z', '2026-10-25T23:00Z'], // 25 hours
    ['day', 'Africa/Cairo', '2026-04-23T23:00Z', '2026-04-23T22:00Z', '2026-04-24T21:00Z'], // begins at 01:00
    ['day', 'America/Havana', '2026-11-01T04:30Z', '2026-10-31T04:00Z', '2026-11-01T05:00Z'], // midnight comes twice
    ['month', 'America/New_York', '2026-03-15T00:00Z', '2026-03-01T05:00Z', '2026-04-01T04:00Z'],
    ['hour', 'Asia/Kolkata', '2026-01-01T00:15Z', '2025-12-31T23:30Z', '2026-01-01T00:30Z'],
  ])('a %s in %s at %s', async (per, zone, at, begins, ends) => {
    const [row] = await query('SELECT * FROM budget_period($1, $2, $3)', [per, zone, at])
    expect([row.begins_at, row.ends_at]).toEqual([new Date(begins), new Date(ends)])
  })

  test('follow each other without a gap in all zones that change clocks', async () => {
    const zones = ['Europe/Berlin', 'America/Havana', 'Africa/Cairo', 'Asia/Beirut']
    const wrong = await query(
      `SELECT zone, per, at FROM unnest($1::text[]) zone, unnest(ARRAY['day', 'month']) per,
         generate_series('2025-12-01'::timestamptz, '2027-01-01', '1 hour') at,
         LATERAL budget_period(per, zone, at) now_in, LATERAL budget_period(per, zone, now_in.ends_at) after
       WHERE at < now_in.begins_at OR at >= now_in.ends_at OR after.begins_at <> now_in.ends_at`,
      [zones],
    )
    expect(wrong.slice(0, 3)).toEqual([])
  })

  test('a budget begins anew with its next period', async () => {
    const owner = await newOwner()
    await setBudgets(owner, [daily(100)])
    expect((await ask(owner.agent)).status).toBe(200)
    await until('no room', async () => (await ask(owner.agent)).text.includes('used up'))
    // As if the period had ended: nothing is counted in the one of now.
    await query(
      `UPDATE budget_periods SET begins_at = begins_at - interval '1 day', ends_at = ends_at - interval '1 day'
       FROM budgets b WHERE b.id = budget_id AND b.organization_id = $1`,
      [owner.organizationId],
    )
    await until('room', async () => (await ask(owner.agent)).status === 200)
  })
})
