import { Ajv } from 'ajv'
import OpenAI from 'openai'
import { afterAll, beforeEach, describe, expect, test } from 'vitest'
import { ChatChunk, ChatCompletion } from '#api/chat/completion-schema.ts'
import { createFindSummary, createRunningGateways } from '#instances/find.ts'
import { createAskGateway } from '#instances/gateway/ask.ts'
import { createEphemeralSessionCleanup } from '#turns/ephemeral-sessions.ts'
import { errorBody, requireError } from '../../support/error-body.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { type FakeGateway, Refusal, startFakeGateway } from '../../support/fake-gateway.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const ajv = new Ajv({ allErrors: true, allowUnionTypes: true })
const isCompletion = ajv.compile(ChatCompletion)
const isChunk = ajv.compile(ChatChunk)
const expectFits = (validate: typeof isChunk, value: unknown) => {
  validate(value)
  expect(validate.errors).toBeNull()
}

let id: string

const gateway = await startFakeGateway({})
const chowder = await openTestChowder({ sandboxes: new FakeDriver() })
const url = await chowder.app.listen({ port: 0, host: '127.0.0.1' })
const { key } = await chowder.signUp()
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})
beforeEach(async () => {
  gateway.turns.length = 0
  gateway.calls.length = 0
  gateway.behaviour.turns = 'ok'
  gateway.methods['sessions.delete'] = () => ({ deleted: true })
  await chowder.database.pool.query('DELETE FROM passing_sessions')
  id = await chowder.createReady(key, gateway.endpoint)
})

const openai = () => new OpenAI({ baseURL: `${url}/v1/instances/${id}`, apiKey: key, maxRetries: 0 })
const messages = [{ role: 'user' as const, content: 'hi' }]
const hello = { model: 'openclaw', messages }
const keyOf = (turn: FakeGateway['turns'][number] | undefined) => String(turn?.headers['x-openclaw-session-key'])

/** The ephemeral sessions that are not deleted yet, and whether they are due. */
const ephemeralSessions = async (): Promise<{ session_key: string; due: boolean }[]> => {
  const { rows } = await chowder.database.pool.query(
    `SELECT session_key, due_at < now() + interval '10 seconds' AS due FROM passing_sessions WHERE instance_id = $1`,
    [id],
  )
  return rows
}
const isDue = () => until('the session to be due', async () => (await ephemeralSessions())[0]?.due === true)

/** The periodic task of a worker. */
function createCleanup() {
  const { db } = chowder.database
  const { vault } = chowder
  const askGateway = createAskGateway(createRunningGateways(db, vault, createFindSummary(db)).find, { db, vault })
  return createEphemeralSessionCleanup(db, askGateway, { warn: () => {} })
}
const deleteDue = () => createCleanup()()
const makeDue = () => chowder.database.pool.query(`UPDATE passing_sessions SET due_at = now() - interval '1 second'`)
const deleted = () => gateway.calls.filter(({ method }) => method === 'sessions.delete').map(({ params }) => params.key)

describe('with an Idempotency-Key', () => {
  const ask = async (idempotencyKey: string, fields: object = {}) => {
    const answer = await fetch(`${url}/v1/instances/${id}/chat/completions`, {
      method: 'POST',
      headers: {
        authorization: `Bearer ${key}`,
        'content-type': 'application/json',
        'idempotency-key': idempotencyKey,
      },
      body: JSON.stringify({ ...hello, ...fields }),
    })
    return { status: answer.status, replayed: answer.headers.get('idempotent-replayed'), text: await answer.text() }
  }
  const chunks = (text: string) =>
    text.split('\n\n').flatMap((line) => (/^data: \{/.test(line) ? [JSON.parse(line.slice(6))] : []))

  test('a completion is repeated without another turn', async () => {
    const first = await ask('chat-once')
    expect([first.status, first.replayed]).toEqual([200, null])
    const again = await ask('chat-once')
    expect([again.status, again.replayed, JSON.parse(again.text)]).toEqual([200, 'true', JSON.parse(first.text)])
    expect(gateway.turns).toHaveLength(1)
    expect((await ask('chat-once', { user: 'other' })).status).toBe(422)
  })

  test('a repeated stream has the same text in one chunk, and the usage if it is asked for', async () => {
    const fields = { stream: true, stream_options: { include_usage: true } }
    const first = chunks((await ask('chat-stream', fields)).text)
    const { replayed, text } = await ask('chat-stream', fields)
    const again = chunks(text)
    for (const chunk of again) expectFits(isChunk, chunk)
    const said = (all: typeof first) => all.map(({ choices }) => choices[0]?.delta.content ?? '').join('')
    expect([replayed, said(again), again.at(-1)]).toEqual(['true', said(first), first.at(-1)])
    expect(said(again)).toBe('Hello there')
    expect(again[1]?.choices[0]?.finish_reason).toBe('stop')
    expect(text.endsWith('data: [DONE]\n\n')).toBe(true)
    expect(gateway.turns).toHaveLength(1)
  })

  test('a turn that fails frees the key, also in a stream', async () => {
    gateway.behaviour.turns = 'failed'
    expect((await ask('chat-fails')).status).toBe(502)
    await ask('chat-fails-streamed', { stream: true })
    gateway.behaviour.turns = 'ok'
    expect((await ask('chat-fails')).replayed).toBeNull()
    const { replayed, text } = await ask('chat-fails-streamed', { stream: true })
    expect([replayed, chunks(text).at(-1)?.choices[0].finish_reason]).toEqual([null, 'stop'])
  })
})

describe('the official OpenAI client', () => {
  test('gets a completion', async () => {
    const completion = await openai().chat.completions.create(hello)
    expectFits(isCompletion, completion)
    expect(completion).toMatchObject({
      model: 'openclaw',
      choices: [{ message: { role: 'assistant', content: 'Hello there' }, finish_reason: 'stop' }],
      usage: { prompt_tokens: 10, completion_tokens: 2, total_tokens: 12 },
    })
  })

  test('gets chunks with the usage', async () => {
    const stream = await openai().chat.completions.create({
      ...hello,
      stream: true,
      stream_options: { include_usage: true },
    })
    let text = ''
    const chunks: OpenAI.ChatCompletionChunk[] = []
    for await (const chunk of stream) {
      expectFits(isChunk, chunk)
      chunks.push(chunk)
      text += chunk.choices[0]?.delta.content ?? ''
    }
    expect(text).toBe('Hello there')
    expect(chunks[0]?.choices[0]?.delta.role).toBe('assistant')
    expect(chunks.at(-2)?.choices[0]?.finish_reason).toBe('stop')
    expect(chunks.at(-1)).toMatchObject({ choices: [], usage: { total_tokens: 12 } })
  })

  test('gets the error of a turn that fails before a stream or in the middle of it', async () => {
    gateway.behaviour.turns = 'cut'
    await expect(openai().chat.completions.create(hello)).rejects.toMatchObject({ status: 502 })
    const stream = await openai().chat.completions.create({ ...hello, stream: true })
    const readAll = async () => {
      for await (const _chunk of stream);
    }
    const failure = await readAll().catch((error: unknown) => error as { error: unknown })
    requireError(502, failure?.error)
  })

  test('gets an error that names the field that cannot be honoured', async () => {
    await expect(openai().chat.completions.create({ ...hello, n: 2 })).rejects.toMatchObject({
      status: 400,
      param: 'n',
    })
    expect(gateway.turns).toEqual([])
    expect(await ephemeralSessions(), 'no session was created').toEqual([])
  })
})

describe('a body that is nested too deeply', () => {
  const parameters = `${'{"a":'.repeat(100_000)}1${'}'.repeat(100_000)}`
  test.each([
    [
      'chat/completions',
      '"messages":[{"role":"user","content":"hi"}],' +
        `"tools":[{"type":"function","function":{"name":"f","parameters":${parameters}}}]`,
    ],
    ['responses', `"input":"hi","tools":[{"type":"function","name":"f","parameters":${parameters}}]`],
  ])('is a 400 of $0 that names the limit', async (route, fields) => {
    const answer = await fetch(`${url}/v1/instances/${id}/${route}`, {
      method: 'POST',
      headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json' },
      body: `{"model":"openclaw",${fields}}`,
    })
    const detail = 'The body nests lists and objects deeper than 200 levels. Send a flatter body.'
    expect([answer.status, await answer.json()]).toEqual([400, errorBody('invalid_json', detail)])
  })
})

describe('many ephemeral sessions', () => {
  const newInstance = () => chowder.createReady(key, gateway.endpoint)
  /** Adds sessions that ended some seconds ago, whose keys begin with `name`. */
  const due = (instance: string, name: string, count: number, ago: number) =>
    chowder.database.pool.query(
      `INSERT INTO passing_sessions (session_key, organization_id, instance_id, due_at)
       SELECT $2 || n, organization_id, id, now() - $4 * interval '1 second'
        FROM instances, generate_series(1, $3) n WHERE id = $1`,
      [instance, name, count, ago],
    )
  const deletedOf = (name: string) => deleted().filter((one) => String(one).startsWith(name)).length

  test('of one instance do not delay those of others', async () => {
    await due(id, 'busy', 300, 60)
    await due(await newInstance(), 'other', 1, 1)
    await deleteDue()
    expect([deletedOf('busy'), deletedOf('other')]).toEqual([10, 1])
  })

  test('are deleted a few at a time, and a failure delays no other', async () => {
    let atOnce = 0
    let most = 0
    gateway.methods['sessions.delete'] = async ({ key: one }) => {
      atOnce += 1
      most = Math.max(most, atOnce)
      await new Promise((resolve) => setTimeout(resolve, 20))
      atOnce -= 1
      if (one === 'bad1') throw new Refusal({ code: 'UNAVAILABLE', message: 'later' })
      return { deleted: true }
    }
    await due(id, 'bad', 1, 60)
    await due(id, 'good', 9, 1)
    await deleteDue()
    expect((await ephemeralSessions()).map(({ session_key }) => session_key)).toEqual(['bad1'])
    expect(most).toBe(4)
  })

  test('R8: of a gateway that lets none be deleted are forgotten beyond the latest 1,000', async () => {
    gateway.methods['sessions.delete'] = () => {
      throw new Refusal({ code: 'UNAVAILABLE', message: 'never' })
    }
    const other = await newInstance()
    await due(id, 'old', 300, 60)
    await due(id, 'new', 1000, 1)
    await due(other, 'other', 1, 60)
    await deleteDue()
    const left = await ephemeralSessions()
    expect(left).toHaveLength(1000)
    expect(left.filter(({ session_key }) => session_key.startsWith('old'))).toEqual([])
    expect(deletedOf('other')).toBe(1)
  })

  test('of a gateway that hangs delay no others', async () => {
    const hung = Promise.withResolvers<Record<string, unknown>>()
    gateway.methods['sessions.delete'] = ({ key: one }) =>
      String(one).startsWith('hung') ? hung.promise : { deleted: true }
    const act = createCleanup()
    await due(id, 'hung', 12, 60)
    const first = act()
    await until('the gateway to hang', () => deletedOf('hung') === 4)
    await due(await newInstance(), 'other', 1, 1)
    await act()
    expect([deletedOf('hung'), deletedOf('other')], 'the gateway gets no further call meanwhile').toEqual([4, 1])
    hung.resolve({ deleted: true })
    await first
    await until('the rest', () => deletedOf('hung') === 10)
  })
})

describe('an ephemeral session', () => {
  test('serves one call, has no id of the API, and is deleted after the turn', async () => {
    await openai().chat.completions.create(hello)
    await openai().chat.completions.create(hello)
    const keys = gateway.turns.map(keyOf)
    expect(new Set(keys).size).toBe(2)
    for (const one of keys) expect(one).toMatch(/^c-[0-9a-f]{32}$/)
    await until('both to be due', async () => (await ephemeralSessions()).every(({ due }) => due))
    await makeDue()
    await deleteDue()
    expect(deleted().sort()).toEqual(keys.sort())
    expect(await ephemeralSessions()).toEqual([])
  })

  test('is deleted after a turn that failed, whose error names the provider, streamed or not', async () => {
    gateway.behaviour.turns = 'failed'
    const failure = { code: 'provider_key_refused', message: expect.stringContaining('model provider (anthropic)') }
    await expect(openai().chat.completions.create(hello)).rejects.toMatchObject({ status: 502, ...failure })
    const streamed = async () => {
      for await (const _ of await openai().chat.completions.create({ ...hello, stream: true }));
    }
    await expect(streamed()).rejects.toMatchObject(failure)
    await isDue()
  })

  test('is deleted after a client that left', async () => {
    gateway.behaviour.turns = 'hung'
    const leaving = new AbortController()
    const turn = openai().chat.completions.create(hello, { signal: leaving.signal })
    turn.catch(() => {})
    await until('the turn', () => gateway.turns.length === 1)
    expect(await ephemeralSessions(), 'the row comes before the session').toEqual([
      { session_key: keyOf(gateway.turns[0]), due: false },
    ])
    leaving.abort()
    await isDue()
  })

  test('whose process was lost is deleted later', async () => {
    gateway.behaviour.turns = 'hung'
    const leaving = new AbortController()
    openai()
      .chat.completions.create(hello, { signal: leaving.signal })
      .catch(() => {})
    await until('the turn', () => gateway.turns.length === 1)
    const { rows } = await chowder.database.pool.query(
      `SELECT due_at - now() < interval '21 minutes' AS soon FROM passing_sessions`,
    )
    expect(rows).toEqual([{ soon: true }])
    leaving.abort()
    await isDue()
  })

  test('that cannot be deleted now is tried again', async () => {
    await openai().chat.completions.create(hello)
    await isDue()
    await makeDue()
    gateway.methods['sessions.delete'] = () => {
      throw new Refusal({ code: 'UNAVAILABLE', message: 'later' })
    }
    await deleteDue()
    expect(await ephemeralSessions()).toHaveLength(1)
    await deleteDue()
    expect(deleted(), 'not at once').toHaveLength(1)
    gateway.methods['sessions.delete'] = () => ({ deleted: false }) // it is deleted already
    await makeDue()
    await deleteDue()
    expect(await ephemeralSessions()).toEqual([])
  })

  test('is deleted with its instance', async () => {
    await openai().chat.completions.create(hello)
    await chowder.call('DELETE', `/v1/instances/${id}`, { key })
    await deleteDue()
    expect(await ephemeralSessions()).toEqual([])
  })
})
