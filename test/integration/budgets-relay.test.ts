import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { finished } from 'node:stream/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { request } from 'undici'
import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest'
import { createTurnBudgets } from '#budgets/check.ts'
import { startRelay } from '#composition/relay.ts'
import type { ModelProvider } from '#database/schema.ts'
import { freePort } from '#platform/free-port.ts'
import { newId } from '#platform/ids.ts'
import type { RelayServer } from '#relay/server.ts'
import { makeDataDir, removeDataDir, startChowder } from '../support/chowder-process.ts'
import { listenLocally } from '../support/local-server.ts'
import { openRelayedChowder, type RelayedAgent, type RelayedChowder } from '../support/relayed-chowder.ts'
import { urlOf } from '../support/test-database.ts'
import { until } from '../support/until.ts'

/** A fake of all vendors, which answers what the test says. */
let answerNext: (asked: IncomingMessage, reply: ServerResponse) => unknown
let askedOfVendor = 0
const fakeVendor = createServer(async (asked, reply) => {
  await asked.resume()
  askedOfVendor += 1
  await answerNext(asked, reply)
})

let vendor: Awaited<ReturnType<typeof listenLocally>>
let relayed: RelayedChowder
/** Another relay of the same installation. */
let second: { relay: RelayServer; url: string }

beforeAll(async () => {
  vendor = await listenLocally(fakeVendor)
  relayed = await openRelayedChowder(vendor.url, { places: { perInstance: 100 } })
  const baseUrls = { anthropic: vendor.url, openai: vendor.url, gemini: vendor.url }
  const address = { host: '127.0.0.1', port: await freePort() }
  const relay = await startRelay(relayed.chowder.deps, {
    baseUrls,
    ...address,
    processId: newId(),
    places: { perInstance: 100 },
  })
  second = { relay, url: `http://127.0.0.1:${address.port}` }
})
afterAll(async () => {
  await second?.relay.close(0)
  await relayed?.close()
  await vendor?.close()
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
async function newOwner(labels: Record<string, string> = {}): Promise<Owner> {
  const { key, id: organizationId } = await relayed.chowder.signUp({ providerKey: 'sk-own' })
  const agent = await relayed.addAgent('anthropic', key)
  await relayed.chowder.call('PATCH', `/v1/instances/${agent.id}`, { key, body: { metadata: labels } })
  return { key, agent, organizationId }
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
  test('of 50 calls at once lets through what it has room for, and stops the agent when it is used up', async () => {
    const owner = await newOwner()
    await setBudgets(owner, [daily(1000)])
    answerNext = uses(60, 40, { ms: 300 })
    const answers = await Promise.all(Array.from({ length: 50 }, () => ask(owner.agent)))
    expect(answers.filter(({ status }) => status === 200)).toHaveLength(10)
    const refused = answers.filter(({ status }) => status === 429)
    expect(refused).toHaveLength(40)
    for (const { text, headers } of refused) {
      expect(text).toMatch(/is taken by calls that run now|is used up until/)
      expect(headers).toHaveProperty(text.includes('taken') ? 'retry-after' : 'x-should-retry')
    }
    expect(askedOfVendor).toBe(10)
    await usedUntil(owner, 1000)
    expect(await usedBy(owner)).toBe(1000)
    const { status, text, headers } = await ask(owner.agent)
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
    // Raised, it allows calls again, and what was used stays.
    await setBudgets(owner, [daily(2000)])
    expect((await ask(owner.agent)).status).toBe(200)
    await usedUntil(owner, 1100)
  })

  test('is shared by two relays: 50 calls at once overshoot by less than one of them', async () => {
    const owner = await newOwner()
    await setBudgets(owner, [daily(1050)])
    answerNext = uses(60, 40, { ms: 500 })
    const urls = [relayed.relayUrl, second.url]
    const answers = await Promise.all(
      Array.from({ length: 50 }, (_, at) => ask(owner.agent, { relay: urls[at % 2] as string })),
    )
    const taken = answers.filter(({ status }) => status === 200).length
    expect(taken).toBeGreaterThan(8) // a relay may hold an eighth of the rest for its next calls
    expect(taken).toBeLessThanOrEqual(11)
    await until('all of it to be used', async () => {
      for (const relay of urls) await ask(owner.agent, { relay })
      return (await usedBy(owner)) >= 1050
    })
    expect(await usedBy(owner)).toBeLessThan(1050 + 2 * 100)
  })

  test('needs no statement for most calls while much of it is left', async () => {
    const owner = await newOwner()
    await setBudgets(owner, [daily(10_000_000)])
    const asked = vi.spyOn(relayed.chowder.deps.db.$client, 'query')
    for (let call = 0; call < 50; call += 1) expect((await ask(owner.agent)).status).toBe(200)
    const names = asked.mock.calls.map(([text]) => (text as unknown as { name?: string }).name)
    asked.mockRestore()
    expect(names.filter((name) => name === 'lease_budgets').length).toBeLessThan(5)
    await usedUntil(owner, 5000)
  })

  test('gets back what a call did not use, and what a cut call has left', async () => {
    const owner = await newOwner()
    await setBudgets(owner, [daily(150)])
    answerNext = uses(5, 5)
    for (let call = 0; call < 5; call += 1) {
      await until('room', async () => (await ask(owner.agent)).status === 200)
    }
    expect(await usedBy(owner)).toBeLessThanOrEqual(50)
    answerNext = (asked) => asked.socket.destroy()
    await ask(owner.agent).catch(() => {})
    answerNext = uses(5, 5)
    await until('room', async () => (await ask(owner.agent)).status === 200)
  })

  test('counts a call that tells no usage by its bytes', async () => {
    const owner = await newOwner()
    await setBudgets(owner, [daily(1000)])
    answerNext = (_, reply) => reply.setHeader('content-type', 'application/json').end(' '.repeat(320))
    expect((await ask(owner.agent)).status).toBe(200)
    await usedUntil(owner, 60)
    expect(await usedBy(owner)).toBe(200 / 4 + 320 / 32)
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
  test('of the instance, of its labels and of the organization', async () => {
    const owner = await newOwner({ plan: 'free' })
    const other = await relayed.addAgent('anthropic', owner.key)
    await setBudgets(owner, [
      daily(1_000_000),
      { ...daily(100), name: 'free', selector: { plan: 'free' } },
      { ...daily(1), name: 'paid', selector: { plan: 'paid' } },
    ])
    expect((await ask(owner.agent)).status).toBe(200)
    await until('the labels to be used up', async () => (await ask(owner.agent)).text.includes('used up'))
    expect((await ask(owner.agent)).text).toContain('The budget “free” of agents with these labels is used up')
    expect((await ask(other)).status).toBe(200)
    await usedUntil(owner, 200)
    await setBudgets(owner, [daily(100)], `/v1/instances/${other.id}`)
    expect(await ask(other)).toMatchObject({ status: 200 })
    await until('the instance to be used up', async () => (await ask(other)).text.includes('used up'))
    expect((await ask(other)).text).toContain('The budget “daily” of this agent is used up')
    await usedUntil(owner, 300)
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

describe('a budget of a key', () => {
  const session = 's-1'
  /** A request in a session, which may use 100 tokens or more; OpenClaw names the session after the messages. */
  const inSession = (name: string | null, messageBytes = 1) =>
    JSON.stringify({
      model: 'claude-haiku-4-5',
      messages: [{ role: 'user', content: 'x'.repeat(messageBytes) }],
      max_tokens: 50,
      ...(name && { system: `You help.\nRuntime: agent=main | session=agent:main:${name} | channel=webchat` }),
    }).padEnd(200, ' ')
  /** An owner with a key that has the budgets, whose turn in the session has begun. */
  async function newKeyOwner(budgets: object[]): Promise<Owner & { keyId: string; path: string }> {
    const owner = await newOwner()
    const { key, agent, organizationId } = owner
    const { body: made } = await relayed.chowder.call('POST', '/v1/keys', {
      key,
      body: { name: 'k', instance_ids: [agent.id], permissions: ['interact'] },
    })
    const path = `/v1/keys/${made.id}`
    await setBudgets(owner, budgets, path)
    const turns = createTurnBudgets(relayed.chowder.deps.db)
    await turns.begin({ organizationId, keyId: made.id, instanceId: agent.id, sessionKey: session })
    return { ...owner, keyId: made.id, path }
  }

  test('of 50 calls at once in its session lets through what it has room for, and no other session is refused', async () => {
    const owner = await newKeyOwner([daily(1000)])
    answerNext = uses(60, 40, { ms: 300 })
    const calls = Array.from({ length: 50 }, () => ask(owner.agent, { body: inSession(session) }))
    const answers = await Promise.all(calls)
    const taken = answers.filter(({ status }) => status === 200).length
    expect(taken).toBeGreaterThan(5)
    expect(taken).toBeLessThanOrEqual(10)
    await usedUntil(owner, taken * 100, owner.path)
    await until('it to be used up', async () =>
      (await ask(owner.agent, { body: inSession(session) })).text.includes('is used up'),
    )
    const { status, text } = await ask(owner.agent, { body: inSession(session) })
    expect(status).toBe(429)
    expect(text).toContain('The budget “daily” of this key is used up')
    expect((await ask(owner.agent, { body: inSession('s-2') })).status).toBe(200)
    expect((await ask(owner.agent, { body: inSession(null) })).status).toBe(200)
    await until('nothing to be reserved', async () => {
      const { body: ofKey } = await relayed.chowder.call('GET', owner.path, { key: owner.key })
      return ofKey.budgets[0].reserved === 0
    })
  })

  test('and one of the organization: what either refuses is given back to the other', async () => {
    const owner = await newKeyOwner([daily(100)])
    await setBudgets(owner, [daily(1_000_000)])
    expect((await ask(owner.agent, { body: inSession(session) })).status).toBe(200)
    await usedUntil(owner, 100, owner.path)
    await until('it to be used up', async () =>
      (await ask(owner.agent, { body: inSession(session) })).text.includes('of this key is used up'),
    )
    expect(await usedBy(owner)).toBe(100)
    await until('nothing to be reserved', async () => {
      const { body: organization } = await relayed.chowder.call('GET', '/v1/organization', { key: owner.key })
      return organization.budgets[0].reserved === 0
    })
  })

  test('refuses a call that tells its session behind a MiB of messages, before the vendor has all of it', async () => {
    const owner = await newKeyOwner([daily(1)])
    let whole = 0
    answerNext = async (asked, reply) => {
      await finished(asked.resume()).catch(() => {})
      if (!asked.complete) return
      whole += 1
      await uses(60, 40)(asked, reply)
    }
    expect((await ask(owner.agent, { body: inSession(session, 1024 * 1024) })).status).toBe(200)
    await usedUntil(owner, 100, owner.path)
    const refused = async () => ask(owner.agent, { body: inSession(session, 1024 * 1024) })
    await until('it to be used up', async () => (await refused()).text.includes('is used up'))
    const before = whole
    expect(await refused()).toMatchObject({ status: 429, headers: { 'x-should-retry': 'false' } })
    await sleep(200)
    expect(whole).toBe(before)
    expect((await ask(owner.agent, { body: inSession('s-2', 1024 * 1024) })).status).toBe(200)
  })

  test.each([
    ['refuse', 503],
    ['allow', 200],
  ] as const)('that cannot be read has calls %s, as it is set', async (onFault, expected) => {
    const owner = await newKeyOwner([daily(1000, { on_fault: onFault })])
    const { $client } = relayed.chowder.deps.db
    const query = $client.query.bind($client) as (...asked: unknown[]) => unknown
    const failing = vi.spyOn($client, 'query').mockImplementation(((...asked: [{ name?: string }]) => {
      if (asked[0].name === 'find_key_budgets') return Promise.reject(new Error('planted'))
      return query(...asked)
    }) as never)
    const { status, text } = await ask(owner.agent, { body: inSession(session) })
    failing.mockRestore()
    expect(status).toBe(expected)
    if (status === 503) expect(text).toContain('The budgets of this key cannot be read now')
    expect((await ask(owner.agent, { body: inSession(session) })).status).toBe(200)
  })
})

describe('a fault of budgets', () => {
  test.each([
    ['refuse', 503],
    ['allow', 200],
  ] as const)('has calls %s, as it is set', async (onFault, expected) => {
    const owner = await newOwner()
    await setBudgets(owner, [daily(1000, { on_fault: onFault })])
    const { $client } = relayed.chowder.deps.db
    const query = $client.query.bind($client) as (...asked: unknown[]) => unknown
    const failing = vi.spyOn($client, 'query').mockImplementation(((...asked: [{ name?: string }]) => {
      if (asked[0].name === 'lease_budgets') return Promise.reject(new Error('planted'))
      return query(...asked)
    }) as never)
    const { status, text } = await ask(owner.agent)
    failing.mockRestore()
    expect(status).toBe(expected)
    if (status === 503) expect(text).toContain('The budget “daily” of the organization cannot be checked now')
    expect((await ask(owner.agent)).status).toBe(200)
    await usedUntil(owner, status === 200 ? 200 : 100)
  })
})

test('what a killed relay had reserved is free again within 20 s, and its calls count as lost', async () => {
  const owner = await newOwner()
  await setBudgets(owner, [daily(1000)])
  const dataDir = await makeDataDir()
  const port = await freePort()
  const started = await startChowder({
    dataDir,
    role: 'relay',
    env: {
      DATABASE_URL: urlOf(relayed.chowder.database.connection),
      CHOWDER_SECRET_KEY: relayed.secretKey.toString('base64'),
      RELAY_ROLE: 'relay',
      RELAY_HOST: '127.0.0.1',
      RELAY_PORT: String(port),
      ANTHROPIC_BASE_URL: vendor.url,
    },
  })
  try {
    answerNext = () => {}
    const open = Array.from({ length: 10 }, () =>
      ask(owner.agent, { relay: `http://127.0.0.1:${port}` }).catch(() => {}),
    )
    await until('the calls to be open', () => askedOfVendor === 10)
    answerNext = uses(60, 40)
    expect((await ask(owner.agent)).text).toContain('is taken by calls that run now')
    await started.kill('SIGKILL')
    await Promise.all(open)
    await query("UPDATE budget_leases SET renewed_at = renewed_at - interval '20 s'")
    expect((await ask(owner.agent)).status).toBe(200)
  } finally {
    await started.kill('SIGKILL').catch(() => {})
    await removeDataDir(dataDir)
  }
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
