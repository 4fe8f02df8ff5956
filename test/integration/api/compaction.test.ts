import { Ajv } from 'ajv'
import OpenAI from 'openai'
import { afterAll, afterEach, beforeEach, expect, test } from 'vitest'
import { Compaction } from '#api/responses/compaction/schemas.ts'
import { newId } from '#platform/ids.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { present } from '../../support/present.ts'
import {
  type Answer,
  answerFailed,
  answerJson,
  delta,
  responseObject,
  startStream,
  startStubGateway,
  streamHead,
} from '../../support/stub-responses-gateway.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const isCompaction = new Ajv({ allowUnionTypes: true }).compile(Compaction)
const text = (said: string) => [{ type: 'message', role: 'assistant', content: [{ type: 'output_text', text: said }] }]
const usage = { input_tokens: 30, output_tokens: 5, total_tokens: 35 }
const saying = (said: string, over: object = {}): Answer =>
  answerJson(200, responseObject({ output: text(said), usage, ...over }))

const gateway = await startStubGateway(saying('Hello'))
const chowder = await openTestChowder({ sandboxes: new FakeDriver() })
const url = await chowder.app.listen({ port: 0, host: '127.0.0.1' })
const { id: organizationId, key } = await chowder.signUp()
const { pool } = chowder.database
let id: string
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})
beforeEach(async () => {
  gateway.answer = saying('Ada lives in Rome.')
  gateway.received.length = 0
  id = await chowder.createReady(key, gateway.endpoint)
})
afterEach(() => {
  for (const { response } of gateway.received) response.destroy()
})

const openai = (session?: string) =>
  new OpenAI({
    baseURL: `${url}/v1/instances/${id}${session === undefined ? '' : `/session/${session}`}`,
    apiKey: key,
    maxRetries: 0,
  })
const post = (rest: string, body: object, as = key, instance = id) =>
  chowder.call('POST', `/v1/instances/${instance}${rest}`, { key: as, body: { model: 'openclaw', ...body } })
const compact = (body: object, as = key) => post('/responses/compact', body, as)
const say = async (input: unknown, session = 'main', more: object = {}): Promise<string> => {
  const { status, body } = await post(`/session/${session}/responses`, { input, ...more })
  expect(status).toBe(200)
  return body.id
}
/** The text that the gateway got last. */
const asked = () => {
  const { input } = present(gateway.received.at(-1)).body as { input: { content: string }[] | string }
  return typeof input === 'string' ? input : input.map(({ content }) => content).join('\n')
}
const sessionOf = () => String(gateway.received.at(-1)?.headers['x-openclaw-session-key'])
/** The transcript in the last question to the agent. */
const transcript = () => asked().split('\n\n').slice(1)

test('a conversation is compacted in an ephemeral session, and nothing is stored', async () => {
  const compacted = await openai().responses.compact({
    model: 'openclaw',
    input: [
      { role: 'user', content: 'I am Ada.' },
      { role: 'assistant', content: 'Hello Ada.' },
    ],
    instructions: 'Be brief.',
  })
  isCompaction(compacted)
  expect(isCompaction.errors).toBeNull()
  expect(compacted).toMatchObject({
    object: 'response.compaction',
    output: [{ type: 'compaction', id: expect.stringMatching(/^cmp_/) }],
    usage: { input_tokens: 30, output_tokens: 5, total_tokens: 35 },
  })
  expect(JSON.stringify(compacted)).not.toContain('Ada')
  expect(transcript()).toEqual(['user: I am Ada.', 'assistant: Hello Ada.'])
  expect(gateway.received.at(-1)?.body.instructions).toBe('Be brief.')
  expect(sessionOf()).toMatch(/^c-/)
  const { rows } = await pool.query('SELECT id FROM responses WHERE instance_id = $1', [id])
  expect(rows).toEqual([])
  await until('the session to be due', async () => {
    const due = `SELECT 1 FROM passing_sessions WHERE session_key = $1 AND due_at < now() + interval '10 seconds'`
    return (await pool.query(due, [sessionOf()])).rowCount
  })
})

test('a repetition with its Idempotency-Key gets the same compaction, without another turn', async () => {
  const once = () =>
    chowder.call('POST', `/v1/instances/${id}/responses/compact`, {
      key,
      body: { model: 'openclaw', input: 'I am Ada.' },
      headers: { 'idempotency-key': 'compact-once' },
    })
  const first = await once()
  const again = await once()
  expect([first.status, again.status, again.headers['idempotent-replayed']]).toEqual([200, 200, 'true'])
  expect(again.body).toEqual(first.body)
  expect(gateway.received).toHaveLength(1)
})

test('a compaction is read by another session, and is an input item of its response', async () => {
  const { output } = await openai().responses.compact({ model: 'openclaw', input: 'I am Ada.' })
  const response = await say([...output, { role: 'user', content: 'Where do I live?' }], 'next')
  expect(gateway.received.at(-1)?.body.input).toEqual([
    { type: 'message', role: 'assistant', content: 'Summary of the earlier conversation: Ada lives in Rome.' },
    { type: 'message', role: 'user', content: 'Where do I live?' },
  ])
  const items = await openai().responses.inputItems.list(response, { order: 'asc' })
  expect(items.data).toMatchObject([output[0], { role: 'user' }])
  // It may be compacted again, from the input or from the store.
  await compact({ input: [...output, { role: 'user', content: 'Thanks.' }] })
  expect(transcript()).toEqual(['Summary of the earlier conversation: Ada lives in Rome.', 'user: Thanks.'])
  await compact({ previous_response_id: response })
  expect(transcript()).toEqual([
    'Summary of the earlier conversation: Ada lives in Rome.',
    'user: Where do I live?',
    'assistant: Ada lives in Rome.',
  ])
})

test('the stored turns of the session up to a response come before the input', async () => {
  const first = await say('one')
  await say('elsewhere', 'other')
  await say('not stored', 'main', { store: false })
  gateway.answer = answerFailed(500, 'api_error', 'no')
  await post('/responses', { input: 'failed' })
  gateway.answer = saying('Two.')
  const second = await say('two')
  await say('three')
  await compact({ previous_response_id: second, input: 'four' })
  const turns = ['user: one', 'assistant: Ada lives in Rome.', 'user: two', 'assistant: Two.', 'user: four']
  expect(transcript()).toEqual(turns)
  await openai('main').responses.compact({ model: 'openclaw', previous_response_id: first })
  expect(transcript()).toEqual(turns.slice(0, 2))
})

test('a previous response that cannot be compacted is a 400 that says why', async () => {
  const stored = await say('one')
  const unstored = await say('two', 'main', { store: false })
  const other = await say('three', 'other')
  const refused = async (body: object, rest = '/responses/compact', as = key) => {
    const answer = await post(rest, body, as)
    expect(answer.status).toBe(400)
    expect(answer.body.error.param).toBe('previous_response_id')
    return answer.body.error.code
  }
  expect(await refused({ previous_response_id: unstored })).toBe('previous_response_not_found')
  expect(await refused({ previous_response_id: 'resp_x' })).toBe('previous_response_not_found')
  expect(await refused({ previous_response_id: other }, '/session/main/responses/compact')).toBe(
    'previous_response_not_latest',
  )
  const scoped = await chowder.call('POST', `/v1/instances/${id}/client_tokens`, {
    key,
    body: { session_ids: ['other'] },
  })
  expect(scoped.status).toBe(201)
  const token = scoped.body.client_token as string
  expect(await refused({ previous_response_id: stored }, '/responses/compact', token)).toBe(
    'previous_response_not_found',
  )
  expect((await compact({ previous_response_id: other }, token)).status).toBe(200)
  gateway.answer = (response) => startStream(response).write(streamHead + delta('so far'))
  const stream = await openai('open').responses.create({ model: 'openclaw', input: 'x', stream: true })
  for await (const event of stream) {
    if (event.type !== 'response.created') continue
    expect(await refused({ previous_response_id: event.response.id })).toBe('previous_response_not_latest')
    break
  }
})

test('a compaction that cannot be opened is a 400 that names it, also over another instance or organization', async () => {
  const { body } = await compact({ input: 'I am Ada.' })
  const asks = { input: [{ role: 'user', content: 'so' }, ...body.output, { role: 'user', content: 'hi' }] }
  const sibling = await chowder.createReady(key, gateway.endpoint)
  const other = await chowder.signUp()
  const foreign = await chowder.createReady(other.key, gateway.endpoint)
  gateway.received.length = 0
  for (const path of ['/responses', '/responses/compact', '/session/x/responses/compact']) {
    for (const answer of [await post(path, asks, key, sibling), await post(path, asks, other.key, foreign)]) {
      expect([answer.status, answer.body.error.param]).toEqual([400, 'input.1.encrypted_content'])
    }
  }
  expect(gateway.received).toEqual([])
  expect((await post('/responses', asks)).status).toBe(200)
})

test.each<[string, object]>([
  ['input', {}],
  ['input', { input: [] }],
  ['input', { input: [{ type: 'reasoning' }] }],
  ['input.0', { input: [{ type: 'item_reference', id: 'msg_1' }] }],
  ['input.0.type', { input: [{ type: 'mcp_call' }] }],
  ['model', { model: 'openai/gpt-5', input: 'x' }],
  ['tools', { input: 'x', tools: [] }],
])('%s is refused in %j', async (param, body) => {
  const answer = await compact(body)
  expect([answer.status, answer.body.error.param]).toEqual([400, param])
  expect(gateway.received).toEqual([])
})

test.each<[string, Answer, number]>([
  ['fails', answerFailed(500, 'api_error', 'no'), 502],
  ['is cut at the token limit', saying('Ada', { status: 'incomplete' }), 502],
  ['is empty', saying(' '), 502],
  ['is too long', saying('x'.repeat(200_001)), 502],
])('a summary that %s is an error', async (_, answer, status) => {
  gateway.answer = answer
  expect((await compact({ input: 'x' })).status).toBe(status)
})

test('a used budget refuses it, and the end user of the summary is noted', async () => {
  await compact({ input: 'x', user: 'ada' })
  const noted = `SELECT end_user FROM session_end_users WHERE session = $1`
  expect((await pool.query(noted, [sessionOf()])).rows).toEqual([{ end_user: 'ada' }])
  const budgets = [{ name: 'daily', limit: { tokens: 10 }, per: 'day' }]
  await chowder.call('PATCH', `/v1/instances/${id}`, { key, body: { budgets } })
  await pool.query(
    `INSERT INTO model_calls (id, organization_id, instance_id, provider, began_at, outcome, input_tokens, output_tokens)
     VALUES ($1, $2, $3, 'anthropic', now(), 'answered', 11, 0)`,
    [newId(), organizationId, id],
  )
  gateway.received.length = 0
  await until('the budget to be used up', async () => (await compact({ input: 'x' })).status === 402)
})
