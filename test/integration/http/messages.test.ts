import { afterAll, describe, expect, test } from 'vitest'
import { FakeDriver } from '../../support/fake-driver.ts'
import { openTestChowder } from '../../support/test-chowder.ts'

const chowder = await openTestChowder({ sandboxes: new FakeDriver() })
const { key } = await chowder.signUp()
afterAll(() => chowder.close())

const agent = '/v1/instances/01a218de-6614-7c4f-95ce-63a40db57224'
const fault = (place: string, msg: string) => `${place} ${msg}`

/** What a person reads of a list of faults: each place with its message. */
const read = (detail: { loc: string[]; msg: string }[]) => detail.map(({ loc, msg }) => fault(loc.join('.'), msg))

describe('a request that does not fit its schema says what is wrong and what is allowed', () => {
  const create = ['POST', '/v1/instances'] as const
  const keys = ['PATCH', '/v1/organization'] as const
  const turn = ['POST', `${agent}/responses`] as const
  const chat = ['POST', `${agent}/chat/completions`] as const
  const oneSidedKey = 'must be the key alone: visible ASCII characters without quotes, spaces or line ends'

  test.each<[readonly ['POST' | 'PATCH' | 'DELETE' | 'GET', string], unknown, string[]]>([
    [create, undefined, ['body is empty: send a JSON object with `name`']],
    [['DELETE', '/v1/organization'], undefined, ['body is empty: send a JSON object with `name`']],
    [create, 'null', ['body must be an object, not null']],
    [create, [], ['body must be an object, not a list']],
    [create, {}, ['body.name is missing']],
    [create, { name: '' }, ['body.name must not be empty']],
    [create, { name: 5 }, ['body.name must be a text, not 5']],
    [create, { name: true }, ['body.name must be a text, not true']],
    [create, { name: 'a\nb' }, ['body.name must not have control characters, such as a line end or a tab']],
    [create, { name: 'x'.repeat(129) }, ['body.name must have at most 128 characters']],
    [
      create,
      { name: 'a', modelProvider: 'openai' },
      ['body.modelProvider is not a known field; did you mean `model_provider`?'],
    ],
    [create, { name: 'a', metdata: {} }, ['body.metdata is not a known field; did you mean `metadata`?']],
    [
      create,
      { name: 'a', model_provider: 'google' },
      ['body.model_provider must be one of: anthropic, openai, gemini'],
    ],
    [
      create,
      { name: 'a', model_provider: 'Anthropic' },
      ['body.model_provider must be one of: anthropic, openai, gemini; did you mean `anthropic`?'],
    ],
    [create, { name: 'a', model_provider: 7 }, ['body.model_provider must be one of: anthropic, openai, gemini']],
    [create, { name: 'a', sandbox_provider: 'docker' }, ['body.sandbox_provider must be sandbox']],
    [create, { name: 'a', region: 7 }, ['body.region must be a text or null, not 7']],
    [create, { name: 'a', metadata: { 'a/b': 1 } }, ['body.metadata.a/b must be a text, not 1']],
    [create, { name: 'a', metadata: { '': 'b' } }, ['body.metadata has the key "", which must not be empty']],
    [create, { name: 'a', openclaw_config: [] }, ['body.openclaw_config must be an object or null, not a list']],
    [keys, { model_api_keys: { anthropic: 'sk-ant-1\n' } }, [`body.model_api_keys.anthropic ${oneSidedKey}`]],
    [keys, { model_api_keys: { anthropic: '"sk-ant-1"' } }, [`body.model_api_keys.anthropic ${oneSidedKey}`]],
    [
      keys,
      { model_api_keys: { google: 'AIza' } },
      ['body.model_api_keys.google is not a known field; known: `anthropic`, `openai`, `gemini`'],
    ],
    [
      ['POST', '/v1/keys'],
      { name: 'k', instance_ids: [], permissions: ['read', 'read', 'write'] },
      [
        'body.instance_ids must not be empty',
        'body.permissions.2 must be one of: read, interact, sessions, configure, files, channels, approve',
        'body.permissions must not have the same item twice: 0 and 1',
      ],
    ],
    [
      ['POST', `${agent}/start`],
      { force: true },
      ['body.force is not a known field; this call takes an empty object, or no body'],
    ],
    [turn, { model: 'openclaw', input: null }, ['body.input must be a text or a list, not null']],
    [turn, { model: '', input: 'hi' }, [expect.stringContaining('body.model must be the name of a model: ')]],
    [turn, { model: 'openclaw', input: 'hi', temperature: 3 }, ['body.temperature must be at most 2']],
    [
      turn,
      { model: 'openclaw', input: 'hi', temperature: 'hot' },
      ['body.temperature must be a number or null, not a text'],
    ],
    [
      turn,
      { model: 'openclaw', input: [{ role: 'user', content: [{ type: 'text', text: 'hi' }] }] },
      [
        'body.input.0.content.0 must have one of these as `type`: input_text, input_image, input_file, output_text, refusal',
      ],
    ],
    [
      turn,
      { model: 'openclaw', input: [{ role: 'robot', content: 'hi' }] },
      ['body.input.0.role must be one of: user, assistant, system, developer'],
    ],
    [turn, { model: 'openclaw', input: [{ role: 'user' }] }, ['body.input.0.content is missing']],
    [turn, { model: 'openclaw', input: [{}] }, ['body.input.0.type is missing']],
    [turn, { model: 'openclaw', input: 'hi', truncation: 'no' }, ['body.truncation must be one of: auto, disabled']],
    [chat, { model: 'openclaw', messages: [] }, ['body.messages must not be empty']],
    [
      chat,
      { model: 'openclaw', messages: [{ role: 'user', content: [{ text: 'hi' }] }] },
      ['body.messages.0.content.0.type is missing'],
    ],
    [['GET', '/v1/instances?limit=2000'], undefined, ['query.limit must be at most 1000']],
    [
      ['GET', '/v1/instances?metdata.customer=1'],
      undefined,
      ['query.metdata is not a known parameter; did you mean `metadata`?'],
    ],
    [['GET', '/v1/instances?limit=ten'], undefined, ['query.limit must be a whole number']],
    [['GET', '/v1/instances?limit=1&limit=2'], undefined, ['query.limit must be given only once']],
    [['GET', '/v1/instances?lmit=1'], undefined, ['query.lmit is not a known parameter; did you mean `limit`?']],
  ])('%s %j', async ([method, url], body, faults) => {
    const answer = await chowder.call(method, url, { key, body })
    expect(answer).toMatchObject({ status: 422, body: { detail: expect.any(Array) } })
    expect(read(answer.body.detail)).toEqual(faults)
  })

  test.each([
    ['at most 20 faults of a small body', 50, 20],
    ['the first fault of a large body', 40_000, 1],
  ])('lists %s', async (_what, faults, listed) => {
    const body = { model: 'openclaw', input: Array(faults).fill(1) }
    const answer = await chowder.call('POST', `${agent}/responses`, { key, body })
    expect(answer).toMatchObject({ status: 422, body: { detail: expect.any(Array) } })
    expect(answer.body.detail).toHaveLength(listed)
  })
})

describe('where the contract fixes `detail`, `error.message` goes on with what was probably meant', () => {
  const create = (config: object) =>
    ['POST', '/v1/instances', { name: 'a', model_provider: 'anthropic', openclaw_config: config }] as const

  test.each<[readonly [method: 'GET' | 'POST', url: string, body?: unknown], string]>([
    [['GET', `${agent}/channels/telegrm`], 'Channel not found. Did you mean telegram?'],
    [['GET', `${agent}/channels/fax`], 'Channel not found. The channels are: telegram, '],
    [['GET', '/v1/instances/$ID'], 'Instance not found. "$ID" is no id of an instance: '],
    [
      create({ agents: { defaults: { modle: 'x' } } }),
      'agents.defaults: Unrecognized key: "modle" (did you mean agents.defaults.model?)',
    ],
    [
      create({ 'agents.defaults.model': 5 }),
      'agents.defaults.model: Invalid input (the types of agents.defaults.model are: string, object)',
    ],
  ])('%j', async ([method, url, body], message) => {
    await chowder.call('PATCH', '/v1/organization', { key, body: { model_api_keys: { anthropic: 'sk-ant-1' } } })
    const answer = await chowder.call(method, url, { key, body })
    expect(answer.body.error.message).toContain(message)
    expect(answer.body.error.message.startsWith(answer.body.detail)).toBe(true)
  })
})

describe('a body that cannot be read says why, and where', () => {
  const quotes = 'JSON needs double quotes around names and texts.'
  test.each([
    ["{'name':'a'}", `The body is not valid JSON: unexpected characters, at line 1, column 2. ${quotes}`],
    [`'{"name":"a"}'`, `The body is not valid JSON: unexpected characters, at line 1, column 1. ${quotes}`],
    ['{\n  "name": "a",\n}', 'The body is not valid JSON: no comma may stand before } or ], at line 3, column 1.'],
    ['{"name": "a"', 'The body is not valid JSON: the end is missing: } is expected, at line 1, column 13.'],
    ['{"name": a}', 'The body is not valid JSON: unexpected characters, at line 1, column 10.'],
    ['{"name" "a"}', 'The body is not valid JSON: a colon is expected, at line 1, column 9.'],
    ['@body.json', 'The body is not valid JSON: unexpected characters, at line 1, column 1.'],
    ['{"name": "C:\\x"}', expect.stringContaining('write \\\\ for a backslash, at line 1, column 10.')],
    ['\ufeff{"name" 1}', 'The body is not valid JSON: a colon is expected, at line 1, column 9.'],
    [
      '{"__proto__": {}}',
      'The body has a key __proto__, or a key constructor with a key prototype in it. No call accepts them. Remove it.',
    ],
  ])('%j', async (body, detail) => {
    expect(await chowder.call('POST', '/v1/instances', { key, body })).toMatchObject({ status: 400, body: { detail } })
  })

  test.each([
    [{ 'content-encoding': 'gzip' }, 'The body has the Content-Encoding gzip. Send it as it is, without this header.'],
    [
      { 'content-type': 'application/json; charset=utf-16' },
      'The body has the charset utf-16. Send UTF-8, which needs no charset.',
    ],
    [
      { 'transfer-encoding': 'gzip, chunked' },
      'The body has the Transfer-Encoding gzip, chunked. Only chunked is accepted. Send it as it is.',
    ],
    [{ 'content-type': 'text/plain' }, 'Send the body as application/json.'],
  ])('%j', async (headers, detail) => {
    const answer = await chowder.call('POST', '/v1/instances', { key, body: '{"name":"a"}', headers })
    expect(answer).toMatchObject({ status: 415, body: { detail } })
  })

  test.each([{ 'content-encoding': 'identity' }, { 'content-type': 'application/json; charset="UTF-8"' }])(
    'but %j is as good as none',
    async (headers) => {
      const answer = await chowder.call('PATCH', '/v1/organization', { key, body: '{"name":"Acme"}', headers })
      expect(answer.status).toBe(200)
    },
  )
})
