import { setTimeout as wait } from 'node:timers/promises'
import { afterAll, afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { deleteExpiredResponses } from '#api/responses/store/expiry.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { expectWholeStream, faultsOfResponse, readEvents } from '../../support/response-schemas.ts'
import {
  type Answer,
  answerFailed,
  answerJson,
  answerStream,
  delta,
  responseObject,
  startStream,
  startStubGateway,
  streamHead,
  wholeStream,
} from '../../support/stub-responses-gateway.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const echo: Answer = answerJson(200, responseObject())
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

/** Waits until the only response of the instance is in the database, and returns its id. */
async function storedId(where = 'true'): Promise<string> {
  const found = `SELECT id FROM responses WHERE instance_id = $1 AND ${where}`
  const row = await until('the row', async () => {
    const { rows } = await chowder.database.pool.query(found, [id])
    return rows[0] as { id: string } | undefined
  })
  return `resp_${row.id.replaceAll('-', '')}`
}

/** Waits until its end is there too, which is written after its caller has been answered. */
const stored = () => storedId(`status <> 'in_progress'`)

const pathOf = (session = 'main', instance = id) => `/v1/instances/${instance}/session/${session}/responses`
const say = (body: object = {}, path = pathOf(), as = key) =>
  chowder.call('POST', path, { key: as, body: { model: 'openclaw', input: 'hello', ...body } })
const read = (response: string, rest = '', instance = id, as = key) =>
  chowder.call('GET', `/v1/instances/${instance}/responses/${response}${rest}`, { key: as })

/** Gives responses of the instance that are in progress, or were, to a process that is dead. The real one is alive. */
async function lose(where = 'true'): Promise<void> {
  const { pool } = chowder.database
  await pool.query(
    `INSERT INTO processes (id, role, since, seen_at)
     SELECT DISTINCT process_id, 'api', now() - interval '1 hour', now() + interval '1 hour' FROM responses
     ON CONFLICT DO NOTHING`,
  )
  await pool.query(
    `UPDATE responses SET status = 'in_progress', process_id = gen_random_uuid() WHERE instance_id = $1 AND ${where}`,
    [id],
  )
}

/** Runs a turn whose answer calls tools of the client. */
const answerCalls = (...callIds: string[]): Answer =>
  answerJson(
    200,
    responseObject({
      output: callIds.map((call_id) => ({ type: 'function_call', id: 'x', call_id, name: 'f', arguments: '{}' })),
    }),
  )
const result = (call_id: string) => ({ type: 'function_call_output', call_id, output: 'sunny' })
const tools = [{ type: 'function', name: 'f' }]

/** Starts a streamed turn on a connection of its own. */
const stream = (body: object = {}, path = pathOf()) =>
  fetch(url + path, {
    method: 'POST',
    headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json' },
    body: JSON.stringify({ model: 'openclaw', input: 'hello', stream: true, ...body }),
  })
async function begun(response: Response): Promise<{ id: string; rest: Promise<string> }> {
  const reader = (response.body as ReadableStream<Uint8Array>).getReader()
  const first = Buffer.from((await reader.read()).value ?? []).toString()
  const rest = (async () => {
    let text = first
    for (;;) {
      const { done, value } = await reader.read()
      if (done) return text
      text += Buffer.from(value).toString()
    }
  })()
  return { id: /"id":"(resp_[0-9a-f]{32})"/.exec(first)?.[1] ?? '', rest }
}
const hang: Answer = (response) => startStream(response).write(streamHead + delta('so far'))

test('a turn whose key the provider refuses is noted at the key', async () => {
  const refusedAt = async () =>
    (await chowder.call('GET', '/v1/organization', { key })).body.model_api_keys.anthropic.refused_at
  expect(await refusedAt()).toBeNull()
  gateway.answer = answerFailed(401, 'authentication_error', '401: bad key')
  expect((await say()).body.error.code).toBe('provider_key_refused')
  await until('the refusal to be noted', refusedAt)
})

describe('a response', () => {
  test('is stored with its end although the database’s answer to the insert was lost', async () => {
    const { $client } = chowder.database.db
    const { query } = $client
    let lost = 0
    $client.query = (async (...asked: [{ name?: string }]) => {
      const answer = await query.apply($client, asked as never)
      if (asked[0].name === 'insert_responses' && lost++ === 0) throw new Error('Connection terminated unexpectedly')
      return answer
    }) as typeof query
    try {
      gateway.answer = (response, asked) => void until('the loss', () => lost === 1).then(() => echo(response, asked))
      const { body } = await say()
      expect(lost).toBe(1)
      expect((await read(body.id)).body).toEqual(body)
      const { rows } = await chowder.database.pool.query('SELECT status FROM responses WHERE instance_id = $1', [id])
      expect(rows).toEqual([{ status: 'completed' }])
    } finally {
      $client.query = query
    }
  })

  test('can be read again unchanged, and so can its input', async () => {
    const input = [
      { role: 'system', content: 'be brief' },
      { type: 'message', role: 'user', content: [{ type: 'input_text', text: 'hi' }] },
    ]
    const { body } = await say({ input, metadata: { a: 'b' }, instructions: 'kind' })
    expect(faultsOfResponse(body)).toEqual([])
    expect(await read(body.id)).toMatchObject({ status: 200, body })
    const listed = await read(body.id, '/input_items?order=asc')
    expect(listed.body).toMatchObject({
      object: 'list',
      has_more: false,
      data: [
        { type: 'message', role: 'system', content: [{ type: 'input_text', text: 'be brief' }], status: 'completed' },
        { type: 'message', role: 'user', content: [{ type: 'input_text', text: 'hi' }] },
      ],
    })
    const page = await read(body.id, '/input_items?limit=1')
    expect(page.body).toMatchObject({ has_more: true, data: [{ role: 'user' }], last_id: expect.any(String) })
    const next = await read(body.id, `/input_items?limit=1&after=${page.body.last_id}`)
    expect(next.body).toMatchObject({ has_more: false, data: [{ role: 'system' }] })
  })

  test('is sealed in the database, and so is its input', async () => {
    const { body } = await say({ input: 'a canary in the clear' })
    expect((await read(body.id)).status).toBe(200)
    const { rows } = await chowder.database.pool.query('SELECT * FROM responses WHERE instance_id = $1', [id])
    expect(rows).toHaveLength(1)
    expect(JSON.stringify(rows)).not.toMatch(/canary|Grüße/)
    expect(rows[0].sealed_object).toMatch(/^v1\./)
  })

  test('is in progress while the agent works', async () => {
    gateway.answer = hang
    const turn = await begun(await stream())
    expect(await read(turn.id)).toMatchObject({ status: 200, body: { status: 'in_progress', output: [] } })
  })

  test('that failed reads as failed', async () => {
    gateway.answer = answerFailed(502, 'api_error', 'upstream provider error')
    expect((await say()).status).toBe(502)
    const { body } = await read(await stored())
    expect(body).toMatchObject({
      status: 'failed',
      error: { message: 'The model provider (anthropic) failed. Try again in a moment.' },
    })
    expect(faultsOfResponse(body)).toEqual([])
  })

  test('with store: false is stored without its contents', async () => {
    const { body } = await say({ store: false })
    expect(body.store).toBe(false)
    await stored()
    expect((await read(body.id)).status).toBe(404)
    expect((await read(body.id, '/input_items')).status).toBe(404)
    const { rows } = await chowder.database.pool.query('SELECT * FROM responses WHERE instance_id = $1', [id])
    expect(rows).toMatchObject([{ status: 'completed', sealed_object: null, sealed_input: null }])
    expect((await say({ previous_response_id: body.id })).status).toBe(200)
  })

  test('of another organization or instance is a 404, as an unknown one is', async () => {
    const other = (await chowder.signUp()).key
    const theirs = await newInstance(other)
    const foreign = await say({}, pathOf('main', theirs), other)
    const sibling = await newInstance(key)
    const mine = await say({}, pathOf('main', sibling))
    const unknown = { status: 404, body: { detail: 'Response not found.' } }
    for (const response of [foreign.body.id, mine.body.id, `resp_${'0'.repeat(32)}`, 'nonsense', 'resp_', 'a%00b']) {
      for (const path of ['', '/input_items']) expect(await read(response, path)).toMatchObject(unknown)
      const place = `/v1/instances/${id}/responses/${response}`
      expect(await chowder.call('POST', `${place}/cancel`, { key })).toMatchObject(unknown)
      expect(await chowder.call('DELETE', place, { key })).toMatchObject(unknown)
    }
    expect((await read(foreign.body.id, '', theirs, key)).body.detail).toBe('Instance not found.')
    expect((await read(mine.body.id, '', sibling)).status).toBe(200)
  })

  test('can be deleted once, but not while it is in progress', async () => {
    const { body } = await say()
    const place = `/v1/instances/${id}/responses/${body.id}`
    expect(await chowder.call('DELETE', place, { key })).toMatchObject({
      status: 200,
      body: { id: body.id, object: 'response', deleted: true },
    })
    expect((await chowder.call('DELETE', place, { key })).status).toBe(404)
    expect((await read(body.id)).status).toBe(404)
    gateway.answer = hang
    const turn = await begun(await stream())
    expect((await chowder.call('DELETE', `/v1/instances/${id}/responses/${turn.id}`, { key })).status).toBe(409)
  })
})

describe('a response that was deleted', () => {
  const remove = (response: string) =>
    chowder.call('DELETE', `/v1/instances/${id}/responses/${response}`, { key }).then(({ status }) => status)

  test('cannot be read, and stays the response that its session continues from', async () => {
    const first = await say()
    gateway.answer = answerCalls('c1')
    const second = await say({ tools, previous_response_id: first.body.id })
    gateway.answer = echo
    expect(await remove(second.body.id)).toBe(200)
    const { rows } = await chowder.database.pool.query(
      'SELECT sealed_object, sealed_input FROM responses WHERE instance_id = $1 ORDER BY id DESC LIMIT 1',
      [id],
    )
    expect(rows).toEqual([{ sealed_object: null, sealed_input: null }])
    expect((await read(second.body.id, '/input_items')).status).toBe(404)
    expect((await say({ previous_response_id: first.body.id })).status).toBe(400)
    const input = [result('c1')]
    expect((await say({ input, previous_response_id: second.body.id })).status).toBe(200)
    expect((await say({ input })).status, 'the turn was answered').toBe(400)
  })

  test('while its process seemed lost stays deleted when the process ends its turn', async () => {
    gateway.answer = hang
    const turn = await begun(await stream())
    await storedId()
    await lose()
    expect(await remove(turn.id)).toBe(200)
    gateway.received[0]?.response.end()
    await turn.rest
    expect((await read(turn.id)).status).toBe(404)
    const { rows } = await chowder.database.pool.query('SELECT * FROM responses WHERE instance_id = $1', [id])
    expect(rows).toMatchObject([{ status: 'failed', sealed_object: null }])
  })
})

describe('previous_response_id', () => {
  const refused = (text: RegExp, code = 'previous_response_not_latest') => ({
    status: 400,
    body: {
      detail: expect.stringMatching(text),
      error: { type: 'invalid_request_error', param: 'previous_response_id', code },
    },
  })

  test('continues from the latest response of the session, and does not reach the gateway', async () => {
    const first = await say()
    const second = await say({ previous_response_id: first.body.id })
    expect(second).toMatchObject({ status: 200, body: { previous_response_id: first.body.id } })
    expect(gateway.received.at(-1)?.body).toEqual({ model: 'openclaw', input: 'hello' })
    expect(await say({ previous_response_id: first.body.id })).toMatchObject(refused(/not the latest.*resp_/))
    expect((await say({ previous_response_id: second.body.id })).status).toBe(200)
    expect(gateway.received).toHaveLength(3)
  })

  test('is refused with the reason when it is unknown, of another session or of another instance', async () => {
    const sibling = await newInstance(key)
    const other = (await chowder.signUp()).key
    const foreign = await say({}, pathOf('main', await newInstance(other)), other)
    const [elsewhere, session] = [await say({}, pathOf('main', sibling)), await say({}, pathOf('a'))]
    gateway.received.length = 0
    const ask = (previous_response_id: string) => say({ previous_response_id })
    for (const previous of ['nonsense', `resp_${'0'.repeat(32)}`, foreign.body.id]) {
      expect(await ask(previous)).toMatchObject(refused(/no such response/, 'previous_response_not_found'))
    }
    expect(await ask(elsewhere.body.id)).toMatchObject(refused(/another instance/))
    expect(await ask(session.body.id)).toMatchObject(refused(/another session/))
    expect(gateway.received).toEqual([])
  })

  test('is still valid after a later turn failed', async () => {
    const first = await say()
    gateway.answer = answerFailed(502, 'api_error', 'broken')
    expect((await say({ previous_response_id: first.body.id })).status).toBe(502)
    gateway.answer = echo
    expect((await say({ previous_response_id: first.body.id })).status).toBe(200)
  })

  test('of a later failed turn is accepted also when the clock of its process was behind', async () => {
    const first = await say()
    await stored() // two of one statement have one time
    gateway.answer = answerFailed(502, 'api_error', 'broken')
    await say()
    gateway.answer = echo
    await storedId("status = 'failed'")
    const earlier = '00000000-0000-7000-8000-000000000000'
    const move = "UPDATE responses SET id = $2 WHERE instance_id = $1 AND status = 'failed'"
    await chowder.database.pool.query(move, [id, earlier])
    const previous_response_id = `resp_${earlier.replaceAll('-', '')}`
    expect((await say({ previous_response_id })).status).toBe(200)
    expect(await say({ previous_response_id })).toMatchObject(refused(/not the latest/))
    expect(await say({ previous_response_id: first.body.id })).toMatchObject(refused(/not the latest/))
  })

  test('is accepted for only one of two turns at the same time', async () => {
    const first = await say()
    const both = await Promise.all([1, 2, 3].map(() => say({ previous_response_id: first.body.id })))
    expect(both.map(({ status }) => status).sort()).toEqual([200, 400, 400])
  })

  test('is refused after a moment while that response is in progress', async () => {
    gateway.answer = hang
    const turn = await begun(await stream())
    gateway.answer = echo
    expect(await say({ previous_response_id: turn.id })).toMatchObject(refused(/still in progress/))
  })
})

describe('conversation', () => {
  const main = () => `/v1/instances/${id}/responses`
  const sessionKeys = () => gateway.received.map(({ headers }) => headers['x-openclaw-session-key'])
  const refused = (reason: RegExp) => ({
    status: 400,
    body: { detail: expect.stringMatching(reason), error: { type: 'invalid_request_error', param: 'conversation' } },
  })

  test('selects the session where the path names none, as a text or an object, and the response repeats it', async () => {
    const byText = await say({ conversation: 'a b/ü' }, main())
    expect(byText).toMatchObject({ status: 200, body: { conversation: { id: 'a b/ü' } } })
    expect(faultsOfResponse(byText.body)).toEqual([])
    expect((await read(byText.body.id)).body).toEqual(byText.body)
    const next = { conversation: { id: 'a b/ü' }, previous_response_id: byText.body.id }
    expect((await say(next, main())).status).toBe(200)
    for (const unnamed of [await say({}, pathOf('a%20b%2F%C3%BC')), await say({ conversation: null }, main())]) {
      expect(unnamed.status).toBe(200)
      expect(unnamed.body).not.toHaveProperty('conversation')
    }
    const key = `s-${Buffer.from('a b/ü').toString('hex')}`
    expect(sessionKeys()).toEqual([key, key, key, 'main'])
  })

  test('must be the session in the path, and that of previous_response_id', async () => {
    expect(await say({ conversation: 'b' }, pathOf('a'))).toMatchObject(refused(/must be the session in the path/))
    expect(await say({ conversation: 'main' }, pathOf('a'))).toMatchObject(refused(/must be the session in the path/))
    expect(gateway.received).toEqual([])
    const first = await say({ conversation: 'a' }, pathOf('a'))
    expect(first.status).toBe(200)
    const elsewhere = await say({ conversation: 'b', previous_response_id: first.body.id }, main())
    expect(elsewhere.body.error).toMatchObject({ param: 'previous_response_id', code: 'previous_response_not_latest' })
  })

  test.each(['', { id: 'x'.repeat(201) }])('%j is refused', async (conversation) => {
    expect(await say({ conversation }, main())).toMatchObject(refused(/^conversation: .*1 to 200 bytes/))
    expect(gateway.received).toEqual([])
  })
})

describe('the result of a call', () => {
  test('is accepted once, when the agent waits for it in that session', async () => {
    gateway.answer = answerCalls('c1', 'c2')
    const first = await say({ tools })
    expect(first.body.output).toMatchObject([{ call_id: 'c1' }, { call_id: 'c2' }])
    gateway.answer = echo
    const unknown = { status: 400, body: { error: { param: 'input.0.call_id' } } }
    expect(await say({ input: [result('c3')] })).toMatchObject(unknown)
    expect(await say({ input: [result('c1')] }, pathOf('other'))).toMatchObject(unknown)
    const input = [result('c1'), result('c2')]
    expect((await say({ input, previous_response_id: first.body.id })).status).toBe(200)
    expect(gateway.received.at(-1)?.body.input).toEqual(input)
    expect(await say({ input: [result('c1')] })).toMatchObject({
      status: 400,
      body: { detail: expect.stringContaining('already') },
    })
  })

  test('may be sent again after its turn failed', async () => {
    gateway.answer = answerCalls('c1')
    await say({ tools })
    gateway.answer = answerFailed(502, 'api_error', 'broken')
    expect((await say({ input: [result('c1')] })).status).toBe(502)
    gateway.answer = echo
    expect((await say({ input: [result('c1')] })).status).toBe(200)
  })

  test('is accepted with store: false too', async () => {
    gateway.answer = answerCalls('c1')
    await say({ tools, store: false })
    gateway.answer = echo
    expect((await say({ input: [result('c1')] })).status).toBe(200)
  })

  test('is accepted from only one of two requests at the same time', async () => {
    gateway.answer = answerCalls('c1')
    await say({ tools })
    gateway.answer = echo
    const both = await Promise.all([1, 2].map(() => say({ input: [result('c1')] })))
    expect(both.map(({ status }) => status).sort()).toEqual([200, 400])
  })
})

describe('a whole conversation that is sent with every turn', () => {
  const user = (content: string) => ({ role: 'user', content })
  const call = (call_id: string) => ({ type: 'function_call', call_id, name: 'f', arguments: '{}' })

  test('reaches the agent only from the end of its session on', async () => {
    gateway.answer = answerCalls('c1')
    await say({ tools, input: [user('one')] })
    gateway.answer = echo
    const answered = await say({ input: [user('one'), call('c1'), result('c1')] })
    expect(gateway.received.at(-1)?.body.input).toEqual([result('c1')])
    const reference = { type: 'item_reference', id: answered.body.output[0].id }
    await say({ input: [user('one'), call('c1'), result('c1'), reference, user('two')] })
    expect(gateway.received.at(-1)?.body.input).toEqual([{ type: 'message', ...user('two') }])
  })

  test('reaches the agent as history when it is of another session', async () => {
    const input = [user('one'), call('theirs'), result('theirs'), { role: 'assistant', content: 'ah' }, user('two')]
    expect((await say({ input })).status).toBe(200)
    expect(gateway.received.at(-1)?.body.input).toMatchObject([
      { role: 'user', content: 'one' },
      { type: 'function_call', call_id: 'theirs' },
      { type: 'function_call_output', call_id: 'theirs' },
      { role: 'assistant' },
      { role: 'user', content: 'two' },
    ])
  })

  test('has no known items when its ids have U+0000', async () => {
    const nul = 'c\u0000'
    const unknown = (param: string) => ({ status: 400, body: { error: { param } } })
    expect(await say({ input: [{ type: 'item_reference', id: nul }, user('x')] })).toMatchObject(unknown('input.0.id'))
    expect(await say({ input: [result(nul)] })).toMatchObject(unknown('input.0.call_id'))
    const history = [{ ...user('one'), id: nul }, call(nul), result(nul), user('two')]
    expect((await say({ input: history })).status).toBe(200)
    expect(gateway.received.at(-1)?.body.input).toHaveLength(4)
  })

  test('is refused when it refers to an item that the session does not have', async () => {
    const reference = { type: 'item_reference', id: 'msg_nowhere' }
    expect(await say({ input: [reference, user('x')] })).toMatchObject({
      status: 400,
      body: { error: { param: 'input.0.id' } },
    })
  })
})

describe('a response that is cancelled', () => {
  const cancel = (response: string) => chowder.call('POST', `/v1/instances/${id}/responses/${response}/cancel`, { key })

  test('ends the turn at the gateway and its stream, with the output so far', async () => {
    gateway.answer = hang
    const turn = await begun(await stream())
    await wait(50)
    const { status, body } = await cancel(turn.id)
    expect(status).toBe(200)
    expect(faultsOfResponse(body)).toEqual([])
    expect(body).toMatchObject({ status: 'cancelled', incomplete_details: { reason: 'cancelled' } })
    const { events, isDone } = readEvents(await turn.rest)
    expectWholeStream(events)
    expect(isDone).toBe(true)
    expect(events.at(-1)).toMatchObject({
      type: 'response.incomplete',
      response: { status: 'cancelled', output: [{ status: 'incomplete', content: [{ text: 'so far' }] }] },
    })
    await until('the turn to be ended', () => gateway.received[0]?.abortedAt !== undefined)
    await until('the output to be stored', async () => (await read(turn.id)).body.output.length === 1)
    expect(await cancel(turn.id)).toMatchObject({ status: 200, body: { status: 'cancelled' } })
  })

  test('is the answer of the request that waits for it', async () => {
    gateway.answer = () => {}
    const waiting = say()
    expect((await cancel(await storedId())).status).toBe(200)
    expect(await waiting).toMatchObject({ status: 200, body: { status: 'cancelled', output: [] } })
  })

  test('in another process ends within seconds too', async () => {
    gateway.answer = hang
    const turn = await begun(await stream())
    await storedId()
    // Marks the row as another process would.
    await chowder.database.pool.query(`UPDATE responses SET status = 'cancelled' WHERE instance_id = $1`, [id])
    const startedAt = performance.now()
    expect(readEvents(await turn.rest).events.at(-1)).toMatchObject({ response: { status: 'cancelled' } })
    expect(performance.now() - startedAt).toBeLessThan(10_000)
  })

  test('after its end is a 409', async () => {
    const { body } = await say()
    expect((await cancel(body.id)).status).toBe(409)
  })
})

describe('a response whose process was lost', () => {
  test('reads as failed, does not block the session, and is marked as failed', async () => {
    const first = await say()
    await read((await say()).body.id) // waits until its end is written
    await lose('id = (SELECT id FROM responses WHERE instance_id = $1 ORDER BY id DESC LIMIT 1)')
    const third = await say({ previous_response_id: first.body.id })
    expect(third.status).toBe(200)
    await read(third.body.id)
    await deleteExpiredResponses(chowder.database.db)
    const { rows } = await chowder.database.pool.query(
      'SELECT status FROM responses WHERE instance_id = $1 ORDER BY id',
      [id],
    )
    expect(rows.map(({ status }) => status)).toEqual(['completed', 'failed', 'completed'])
  })

  test('allows to continue as a failed one does, before it is marked', async () => {
    const first = await say()
    const second = await say({ previous_response_id: first.body.id })
    await read(second.body.id)
    await lose('id = (SELECT id FROM responses WHERE instance_id = $1 ORDER BY id DESC LIMIT 1)')
    expect((await say({ previous_response_id: second.body.id })).status).toBe(200)
  })

  test('cannot be cancelled, and the attempt changes nothing', async () => {
    const { body } = await say()
    await read(body.id)
    await lose()
    expect((await chowder.call('POST', `/v1/instances/${id}/responses/${body.id}/cancel`, { key })).status).toBe(409)
    expect((await read(body.id)).body).toMatchObject({ status: 'failed', error: { code: 'lost' } })
  })

  test('reads with the reason', async () => {
    const { body } = await say()
    expect((await read(body.id)).body).toEqual(body)
    await lose()
    expect((await read(body.id)).body).toMatchObject({ status: 'failed', error: { code: 'lost' } })
  })
})

describe('responses are deleted', () => {
  const count = async () =>
    Number(
      (await chowder.database.pool.query('SELECT count(*) FROM responses WHERE instance_id = $1', [id])).rows[0].count,
    )

  /** The first digits of the id of a response that a process made some days from now, by its clock. */
  const timeOfId = (days: number): string => {
    const hex = (Date.now() + days * 86_400_000).toString(16).padStart(12, '0')
    return `${hex.slice(0, 8)}-${hex.slice(8)}`
  }

  test('with their instance: not to be read any more at once, and deleted soon', async () => {
    const { body } = await say()
    await stored()
    expect((await chowder.call('DELETE', `/v1/instances/${id}`, { key })).status).toBe(204)
    const read = await chowder.call('GET', `/v1/instances/${id}/responses/${body.id}`, { key })
    expect([read.status, read.body.error.code]).toEqual([404, 'response_not_found'])
    await deleteExpiredResponses(chowder.database.db)
    expect(await count()).toBe(0)
  })

  test('with their organization', async () => {
    const own = (await chowder.signUp()).key
    id = await newInstance(own)
    await say({}, pathOf(), own)
    await stored()
    expect(await count()).toBe(1)
    const deleted = await chowder.call('DELETE', '/v1/organization', { key: own, body: { name: 'Acme' } })
    expect(deleted.status).toBe(204)
    await deleteExpiredResponses(chowder.database.db)
    expect(await count()).toBe(0)
  })

  test('R6: not by the clock of a process: neither a worker a month ahead nor an API a month behind loses any', async () => {
    await say()
    await stored()
    const { pool, db } = chowder.database
    vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + 40 * 86_400_000 })
    await deleteExpiredResponses(db).finally(() => vi.useRealTimers())
    expect(await count()).toBe(1)
    await pool.query(
      'UPDATE responses SET id = overlay(id::text placing $2 from 1 for 13)::uuid WHERE instance_id = $1',
      [id, timeOfId(-40)],
    )
    await deleteExpiredResponses(db)
    expect(await count()).toBe(1)
  })

  test('R10: turns that wait for others of their session hold no connection to the database', async () => {
    const first = await say()
    await read(first.body.id)
    const holder = await chowder.database.pool.connect()
    await holder.query('SELECT pg_advisory_lock(hashtextextended($1, 0))', [`${id} main`])
    try {
      const turns = Array.from({ length: 30 }, () => say({ previous_response_id: first.body.id }))
      await wait(300)
      const begunAt = performance.now()
      expect((await chowder.call('GET', '/v1/organization', { key })).status).toBe(200)
      expect(performance.now() - begunAt).toBeLessThan(1000)
      await holder.query('SELECT pg_advisory_unlock_all()')
      const statuses = (await Promise.all(turns)).map(({ status }) => status)
      expect(statuses.filter((status) => status === 200)).toHaveLength(1)
      expect(statuses.filter((status) => status === 400)).toHaveLength(29)
    } finally {
      holder.release(true)
    }
  })

  test('R7: in batches of bounded bytes, so that a thousand of the largest take no long statement', async () => {
    await say()
    await stored()
    const { pool, db } = chowder.database
    await pool.query(
      `INSERT INTO responses (id, organization_id, instance_id, session_key, status, created_at, sealed_object)
       SELECT overlay(gen_random_uuid()::text placing $2 from 1 for 13)::uuid, organization_id, instance_id, session_key,
          status, now() - interval '31 days', repeat('x', 2700000)
       FROM responses, generate_series(1, 60) WHERE instance_id = $1`,
      [id, timeOfId(-31)],
    )
    await pool.query('CREATE TABLE batches (deleted int)')
    await pool.query(`CREATE FUNCTION note_batch() RETURNS trigger LANGUAGE plpgsql AS $$
      BEGIN INSERT INTO batches SELECT count(*) FROM old_rows; RETURN NULL; END $$`)
    await pool.query(`CREATE TRIGGER note_batch AFTER DELETE ON responses REFERENCING OLD TABLE AS old_rows
      FOR EACH STATEMENT EXECUTE FUNCTION note_batch()`)
    await deleteExpiredResponses(db)
    const { rows } = await pool.query('SELECT deleted FROM batches WHERE deleted > 0')
    await pool.query('DROP FUNCTION note_batch CASCADE; DROP TABLE batches')
    expect(await count()).toBe(1)
    expect(rows.map(({ deleted }) => deleted)).toEqual(Array(15).fill(4))
  })

  test('R7: a step that fails keeps no other from its work', async () => {
    await say()
    await stored()
    const { pool, db } = chowder.database
    await pool.query(
      `UPDATE responses SET id = overlay(id::text placing $2 from 1 for 13)::uuid, created_at = now() - interval '31 days'
       WHERE instance_id = $1`,
      [id, timeOfId(-31)],
    )
    await say()
    const completed = `SELECT FROM responses WHERE instance_id = $1 AND status = 'completed'`
    await until('the second response', async () => (await pool.query(completed, [id])).rowCount === 2)
    await lose("created_at > now() - interval '1 day'")
    await pool.query(`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$`)
    await pool.query('CREATE TRIGGER refuse BEFORE DELETE ON responses FOR EACH ROW EXECUTE FUNCTION refuse()')
    try {
      await expect(deleteExpiredResponses(db)).rejects.toMatchObject({ cause: { message: 'no' } })
    } finally {
      await pool.query('DROP FUNCTION refuse CASCADE')
    }
    const { rows } = await pool.query('SELECT status FROM responses WHERE instance_id = $1 ORDER BY created_at', [id])
    expect(rows.map(({ status }) => status)).toEqual(['completed', 'failed'])
  })

  test('after 30 days, and when an instance has more than 1,000', async () => {
    await say()
    await stored()
    const { pool, db } = chowder.database
    await pool.query(
      `INSERT INTO responses (id, organization_id, instance_id, session_key, status, created_at)
       SELECT (replace(gen_random_uuid()::text, '-', ''))::uuid, organization_id, instance_id, session_key, status,
          now() - n * interval '1 second'
       FROM responses, generate_series(1, 1100) n WHERE instance_id = $1`,
      [id],
    )
    await pool.query(
      `UPDATE responses SET id = overlay(id::text placing $2 from 1 for 13)::uuid, created_at = now() - interval '31 days'
       WHERE id = (SELECT id FROM responses WHERE instance_id = $1 ORDER BY created_at LIMIT 1)`,
      [id, timeOfId(-31)],
    )
    await deleteExpiredResponses(db)
    expect(await count()).toBe(1000)
  })
})

/** The events of an answer. */
const eventsOf = async (path: string, init: RequestInit = {}) => {
  const headers = { authorization: `Bearer ${key}`, 'content-type': 'application/json', ...init.headers }
  const answer = await fetch(url + path, { ...init, headers })
  return readEvents(await answer.text()).events
}

describe('a turn that comes while another one of its session runs', () => {
  test('is a 429 with on_busy: reject, and cancels the other one with interrupt', async () => {
    gateway.answer = () => {}
    const first = say()
    await until('the first turn to run', () => gateway.received.length === 1)
    const rejected = await say({ on_busy: 'reject' })
    expect([rejected.status, rejected.body.error.code]).toEqual([429, 'session_busy'])
    expect((await say({ on_busy: 'reject', background: true })).status).toBe(429)
    gateway.answer = echo
    const second = await say({ on_busy: 'interrupt' })
    expect([second.status, second.body.status]).toEqual([200, 'completed'])
    expect((await first).body.status).toBe('cancelled')
    expect((await say({ on_busy: 'reject' })).status).toBe(200)
  })
})

describe('a turn with an Idempotency-Key', () => {
  const send = (body: object, idempotencyKey: string) =>
    chowder.call('POST', pathOf(), {
      key,
      body: { model: 'openclaw', input: 'hello', ...body },
      headers: { 'idempotency-key': idempotencyKey },
    })

  test('runs once, and a repetition gets the same response, marked as replayed', async () => {
    const first = await send({}, 'once')
    const again = await send({}, 'once')
    expect([first.status, again.status, again.headers['idempotent-replayed']]).toEqual([200, 200, 'true'])
    expect(again.body).toEqual(first.body)
    expect(gateway.received).toHaveLength(1)
    expect((await send({ input: 'other' }, 'once')).status).toBe(422)
    expect(gateway.received).toHaveLength(1)
  })

  test('as a stream: a repetition is its last event', async () => {
    gateway.answer = answerStream(wholeStream)
    const body = JSON.stringify({ model: 'openclaw', input: 'hello', stream: true })
    const stream = () => eventsOf(pathOf(), { method: 'POST', body, headers: { 'idempotency-key': 'stream' } })
    const first = await stream()
    expect(await stream()).toEqual([{ ...first.at(-1), sequence_number: 0 }])
    expect(gateway.received).toHaveLength(1)
  })

  test('runs again after a failure', async () => {
    gateway.answer = answerFailed(502, 'api_error', 'broken')
    expect((await send({}, 'again')).status).toBe(502)
    gateway.answer = echo
    expect((await send({}, 'again')).status).toBe(200)
  })
})

describe('a background turn', () => {
  test('with an Idempotency-Key is one response, and is durable before its answer', async () => {
    const body = { model: 'openclaw', input: 'hello', background: true }
    const sendIt = () => chowder.call('POST', pathOf(), { key, body, headers: { 'idempotency-key': 'bg' } })
    const [one, two] = await Promise.all([sendIt(), sendIt()])
    expect([one.status, two.status, one.body.status]).toEqual([200, 200, 'queued'])
    expect(two.body).toEqual(one.body)
    const { rows } = await chowder.database.pool.query('SELECT id FROM responses WHERE instance_id = $1', [id])
    expect(rows).toHaveLength(1)
  })

  test('is sealed, and its request is in no other column', async () => {
    await say({ input: 'a-secret-of-the-tenant', background: true })
    const { rows } = await chowder.database.pool.query('SELECT * FROM responses WHERE instance_id = $1', [id])
    expect(rows).toHaveLength(1)
    expect(rows[0].sealed_request).toMatch(/^v[0-9]+\./)
    expect(JSON.stringify(rows)).not.toContain('a-secret-of-the-tenant')
  })

  test('is a 429 beyond 100 of an instance', async () => {
    await chowder.database.pool.query(
      `INSERT INTO responses (id, organization_id, instance_id, session_key, status, sealed_request, process_id)
       SELECT gen_random_uuid(), gen_random_uuid(), $1, 'main', 'in_progress', 'x', (SELECT id FROM processes LIMIT 1)
       FROM generate_series(1, 100)`,
      [id],
    )
    const { status, body } = await say({ background: true })
    expect([status, body.error.code]).toEqual([429, 'too_much_in_flight'])
    await chowder.database.pool.query('DELETE FROM responses WHERE instance_id = $1', [id])
  })

  test('has no stream when it is unknown; that of any ended response is its last event', async () => {
    const { body } = await say()
    const events = await eventsOf(`/v1/instances/${id}/responses/${body.id}?stream=true`)
    expect(events).toEqual([{ type: 'response.completed', sequence_number: 0, response: body }])
    expect((await read('resp_00000000000000000000000000000000', '?stream=true')).status).toBe(404)
  })
})
