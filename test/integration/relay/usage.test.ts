import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { request } from 'undici'
import { afterAll, beforeEach, describe, expect, test, vi } from 'vitest'
import { deleteOldCalls, settleLostCalls } from '#database/model-calls.ts'
import type { ModelProvider } from '#database/schema.ts'
import { freePort } from '#platform/free-port.ts'
import { newId } from '#platform/ids.ts'
import { makeDataDir, removeDataDir, startChowder } from '../../support/chowder-process.ts'
import { listenLocally } from '../../support/local-server.ts'
import { openRelayedChowder, type RelayedAgent } from '../../support/relayed-chowder.ts'
import { urlOf } from '../../support/test-database.ts'
import { until } from '../../support/until.ts'
import { cutAnthropicStream, vendorAnswers } from '../../support/vendor-answers.ts'

/** A fake of all vendors, which answers what the test says. */
let answerNext: (asked: IncomingMessage, reply: ServerResponse) => unknown
const fakeVendor = createServer(async (asked, reply) => {
  await asked.resume()
  await answerNext(asked, reply)
})

const vendor = await listenLocally(fakeVendor)
const relayed = await openRelayedChowder(vendor.url)
afterAll(async () => {
  await relayed.close()
  await vendor.close()
})
beforeEach(() => relayed.chowder.database.pool.query('TRUNCATE model_calls, open_model_calls'))

const query = async (text: string, values: unknown[] = []) =>
  (await relayed.chowder.database.pool.query(text, values)).rows
const calls = () => query('SELECT * FROM model_calls ORDER BY id')
const openCalls = () => query('SELECT * FROM open_model_calls ORDER BY id')
const settled = async (count: number) => {
  await until('the calls to be written', async () => (await calls()).length >= count && !(await openCalls()).length)
  return calls()
}

interface Asked {
  provider?: ModelProvider
  path?: string
  body?: string
  signal?: AbortSignal
}
const ask = (agent: RelayedAgent, { provider = 'anthropic', path = '/v1/messages', body = '{}', signal }: Asked = {}) =>
  request(relayed.at(provider, path), {
    method: 'POST',
    headers: { 'x-api-key': agent.token, 'content-type': 'application/json' },
    body,
    ...(signal && { signal }),
  })
const askWhole = async (...args: Parameters<typeof ask>) => (await ask(...args)).body.text()
const answerWith =
  (body: string, type = 'application/json', status = 200) =>
  (_: IncomingMessage, reply: ServerResponse) =>
    reply.writeHead(status, { 'content-type': type }).end(body)
/** A request as OpenClaw makes it, from a session. */
const requestOf = (session: string, channel = 'webchat') =>
  JSON.stringify({
    model: 'claude-haiku-4-5',
    system: [
      {
        type: 'text',
        text:
          'Runtime: agent=main | session=agent:main:s-00 | channel=telegram\n\n' +
          `Runtime: agent=main | session=agent:main:${session} | sessionId=40ff | host=vm | channel=${channel} | ` +
          'capabilities=none\n<!-- end -->',
      },
    ],
    messages: [{ role: 'user', content: 'Runtime: agent=main | session=agent:main:s-01 | channel=slack' }],
  })

describe('a call through the relay', () => {
  test.each(vendorAnswers)('$name: is counted once, and its bytes are those of the vendor', async (answer) => {
    const { provider, path, type, body, ...expected } = answer
    answerNext = answerWith(body, type)
    const agent = await relayed.addAgent(provider)
    expect(await askWhole(agent, { provider, path })).toBe(body)
    const rows = await settled(1)
    expect(rows).toHaveLength(1)
    expect(rows[0]).toMatchObject({
      organization_id: relayed.organizationId,
      instance_id: agent.id,
      provider,
      model: expected.model,
      outcome: 'answered',
      session: null,
      cause: null,
      input_tokens: expected.inputTokens,
      cache_read_tokens: expected.cacheReadTokens,
      cache_write_tokens: expected.cacheWriteTokens,
      output_tokens: expected.outputTokens,
      reasoning_tokens: expected.reasoningTokens,
    })
    expect(Number(rows[0].cost)).toBeGreaterThan(0)
  })

  test.each([
    ['s-616263', 'webchat', 'api'],
    ['c-f395432b711f40e18823d309f71dac3f', 'webchat', 'api'],
    ['main', 'webchat', null],
    ['main', 'telegram', 'channel'],
    ['telegram:direct:12', 'telegram', 'channel'],
    ['cron:7d9a', 'webchat', 'cron'],
    ['subagent:7d9a', 'webchat', 'subagent'],
  ])('tells its session %s and, by the channel %s, its cause: %s', async (session, channel, cause) => {
    answerNext = answerWith('{}')
    await askWhole(await relayed.addAgent(), { body: requestOf(session, channel) })
    expect(await settled(1)).toMatchObject([{ session, cause, model: 'claude-haiku-4-5', input_tokens: null }])
  })

  test('is of the end user whose client token the last turn of its session came with', async () => {
    answerNext = answerWith('{}')
    const [own, other] = [await relayed.addAgent(), await relayed.addAgent()]
    await query(
      `INSERT INTO session_end_users (organization_id, instance_id, session, end_user) VALUES ($1, $2, 's-00', 'user-1')`,
      [relayed.organizationId, own.id],
    )
    for (const agent of [own, other]) await askWhole(agent, { body: requestOf('s-00') })
    await askWhole(own, { body: requestOf('s-01') })
    expect((await settled(3)).map(({ end_user }) => end_user)).toEqual(['user-1', null, null])
  })

  test('that the client leaves counts what was told so far', async () => {
    answerNext = (_, reply) => {
      reply.writeHead(200, { 'content-type': 'text/event-stream' }).write(cutAnthropicStream)
    }
    const leaving = new AbortController()
    const { body } = await ask(await relayed.addAgent(), { signal: leaving.signal })
    body.on('error', () => {})
    await once(body, 'data')
    await until('the open call', async () => (await openCalls()).length === 1)
    leaving.abort()
    expect(await settled(1)).toMatchObject([{ outcome: 'cut', input_tokens: 21_203, output_tokens: 1 }])
  })

  test('that the vendor cuts counts what was told so far', async () => {
    answerNext = (_, reply) => {
      reply.writeHead(200, { 'content-type': 'text/event-stream' }).write(cutAnthropicStream, () => reply.destroy())
    }
    await askWhole(await relayed.addAgent()).catch(() => {})
    expect(await settled(1)).toMatchObject([{ outcome: 'cut', input_tokens: 21_203, output_tokens: 1 }])
  })

  test('that is refused, free of charge or unanswered counts nothing', async () => {
    const agent = await relayed.addAgent()
    answerNext = answerWith('{"type":"error"}', 'application/json', 529)
    await askWhole(agent)
    answerNext = answerWith('{"input_tokens":7}')
    await askWhole(agent, { path: '/v1/messages/count_tokens' })
    answerNext = (asked) => asked.socket.destroy()
    await askWhole(agent).catch(() => {})
    answerNext = answerWith('{"usage":{"input_tokens":7,"output_tokens":1}}')
    await askWhole(agent)
    expect(await settled(1)).toMatchObject([{ input_tokens: 7 }])
  })

  test('of 200 at the same time needs no statement of its own', async () => {
    answerNext = answerWith('{"model":"claude-haiku-4-5","usage":{"input_tokens":1,"output_tokens":1}}')
    const agents = await Promise.all(Array.from({ length: 10 }, () => relayed.addAgent()))
    const asked = vi.spyOn(relayed.chowder.deps.db.$client, 'query')
    await Promise.all(Array.from({ length: 200 }, (_, index) => askWhole(agents[index % 10] as RelayedAgent)))
    expect(await settled(200)).toHaveLength(200)
    const names = asked.mock.calls.map(([text]) => (text as unknown as { name?: string }).name)
    expect(names.filter((name) => name === 'write_calls').length).toBeLessThan(150)
    asked.mockRestore()
  })
})

/** A process that has beaten for a minute: while there is none, all count as alive. */
const beating = (id: string) =>
  query("INSERT INTO processes (id, seen_at, since) VALUES ($1, now(), now() - interval '1 minute')", [id])

describe('calls whose relay was lost', () => {
  const open = (processId: string, began = "now() - interval '2 minutes'") =>
    query(
      `INSERT INTO open_model_calls (id, organization_id, instance_id, provider, model, began_at, process_id)
       VALUES ($1, $2, $1, 'openai', 'gpt-5', ${began}, $3)`,
      [newId(), relayed.organizationId, processId],
    )

  test('are counted as lost once their process is dead', async () => {
    const [lives, died] = [newId(), newId()]
    await beating(lives)
    await query("INSERT INTO processes (id, seen_at) VALUES ($1, now() - interval '1 minute')", [died])
    for (const id of [lives, died, newId()]) await open(id)
    await open(newId(), 'now()') // its process may be about to report itself
    await settleLostCalls(relayed.chowder.deps.db)
    expect(await calls()).toMatchObject([
      { outcome: 'lost', model: 'gpt-5', input_tokens: null, cost: null },
      { outcome: 'lost' },
    ])
    expect(await openCalls()).toHaveLength(2)
  })

  test('are corrected by a relay that was only held up', async () => {
    const answer = Promise.withResolvers<void>()
    answerNext = async (_, reply) => {
      await answer.promise
      answerWith('{"usage":{"input_tokens":7,"output_tokens":1}}')(_, reply)
    }
    const asking = askWhole(await relayed.addAgent())
    await until('the open call', async () => (await openCalls()).length === 1)
    await query("UPDATE open_model_calls SET began_at = now() - interval '2 minutes'")
    await beating(newId())
    await settleLostCalls(relayed.chowder.deps.db)
    expect(await calls()).toMatchObject([{ outcome: 'lost' }])
    answer.resolve()
    await asking
    await until('the end', async () => (await calls())[0]?.outcome === 'answered')
    expect(await calls()).toMatchObject([{ outcome: 'answered', input_tokens: 7 }])
  })
})

test('a relay that is killed loses no call: what had ended is counted, and what was open is lost', async () => {
  const dataDir = await makeDataDir()
  const port = await freePort()
  const { database } = relayed.chowder
  const started = await startChowder({
    dataDir,
    role: 'relay',
    env: {
      DATABASE_URL: urlOf(database.connection),
      CHOWDER_SECRET_KEY: relayed.secretKey.toString('base64'),
      RELAY_ROLE: 'relay',
      RELAY_PORT: String(port),
      ANTHROPIC_BASE_URL: vendor.url,
    },
  })
  try {
    const agent = await relayed.addAgent()
    const send = (session: string) =>
      request(`http://127.0.0.1:${port}/relay/anthropic/v1/messages`, {
        method: 'POST',
        headers: { 'x-api-key': agent.token },
        body: requestOf(session),
      })
    let waiting = 0
    answerNext = async (_, reply) => {
      waiting += 1
      if (waiting <= 50) answerWith('{"usage":{"input_tokens":7,"output_tokens":1}}')(_, reply)
      else reply.writeHead(200, { 'content-type': 'text/event-stream' }).write(cutAnthropicStream)
    }
    for (let call = 0; call < 50; call += 1) await (await send('s-00')).body.dump()
    const open = await Promise.all(Array.from({ length: 10 }, () => send('s-01')))
    for (const { body } of open) {
      body.on('error', () => {})
      await once(body, 'data')
    }
    const haveTold = async () => (await openCalls()).filter(({ session }) => session === 's-01').length === 10
    await until('the open calls', haveTold)
    await started.kill('SIGKILL')
    await query("UPDATE open_model_calls SET began_at = now() - interval '2 minutes'")
    await query("UPDATE processes SET seen_at = now() - interval '1 minute'")
    await beating(newId())
    await settleLostCalls(relayed.chowder.deps.db)
    const outcomes = await query(
      'SELECT session, outcome, count(*)::int AS calls, sum(input_tokens)::int AS input FROM model_calls GROUP BY 1, 2',
    )
    expect(outcomes.sort((a, b) => (a.session < b.session ? -1 : 1))).toEqual([
      { session: 's-00', outcome: 'answered', calls: 50, input: 350 },
      { session: 's-01', outcome: 'lost', calls: 10, input: null },
    ])
  } finally {
    await started.kill('SIGKILL').catch(() => {})
    await removeDataDir(dataDir)
  }
})

describe('kept calls', () => {
  const add = (count: number, began: string, organizationId = relayed.organizationId) =>
    query(
      `INSERT INTO model_calls (id, organization_id, instance_id, provider, began_at, outcome)
       SELECT gen_random_uuid(), $1, gen_random_uuid(), 'openai', ${began} + n * interval '1 ms', 'answered'
       FROM generate_series(1, ${count}) AS n`,
      [organizationId],
    )
  test('are those of 400 days', async () => {
    await add(3, "now() - interval '401 days'")
    await add(2, "now() - interval '399 days'")
    await deleteOldCalls(relayed.chowder.deps.db)
    expect(await calls()).toHaveLength(2)
  })
})
