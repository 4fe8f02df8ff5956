import { describe, expect, test } from 'vitest'
import { readChatRequest } from '#api/chat/request.ts'
import { CreateChatCompletion } from '#api/chat/request-schema.ts'
import { gatewayRequest } from '#api/responses/format/gateway-request.ts'
import { noKnownItems, readRequest, skipKnownItems } from '#api/responses/format/request.ts'
import { type CreateResponse, CreateResponse as Schema } from '#api/responses/format/request-schema.ts'
import { taggedBodies } from '#api/responses/validation.ts'
import { AppError } from '#errors/app-error.ts'

const png = `data:image/png;base64,${Buffer.from('89504e470d0a1a0a0000000d', 'hex').toString('base64')}`
const to = { provider: 'openai', release: 'v1', model: 'gpt-5.5' } as const
const seeing = 'gpt-5.5'
const f = { type: 'function', name: 'f' }
const user = (...content: object[]) => ({ role: 'user', content })
const image = (image_url: unknown = png) => ({ type: 'input_image', image_url })
const file = (fields: object) => ({ type: 'input_file', ...fields })
const text = { type: 'input_text', text: 'look' }
const compaction = { type: 'compaction', id: 'cmp_1', encrypted_content: 'sealed' }
const inSchema = { type: 'json_schema', name: 'x', schema: { type: 'object' } }

const validate = taggedBodies({ schema: Schema, method: 'POST', url: '/', httpPart: 'body' })

/** The request to OpenClaw for a valid body. */
function ask(over: object, recipient: Parameters<typeof readRequest>[1] = to) {
  const body = { model: seeing, input: 'hello', ...over } as CreateResponse
  expect(
    (validate as (body: unknown) => boolean)(body),
    JSON.stringify((validate as { errors?: unknown }).errors),
  ).toBe(true)
  const request = readRequest(body, recipient, (sealed) => (sealed === 'sealed' ? 'Ada lives in Rome.' : null))
  return { asked: gatewayRequest(request), echo: request.echo }
}
function refusal(over: object): AppError {
  try {
    ask(over)
  } catch (error) {
    if (error instanceof AppError) return error
    throw error
  }
  throw new Error('it was not refused')
}

describe('a field that an agent cannot honour is refused by its name', () => {
  test('a misspelt one also by the name that was meant', () => {
    const { message } = refusal({ instrucions: 'Be brief.' })
    expect(message).toBe('instrucions: this endpoint has no such field. Did you mean instructions?')
  })

  test('one without a name in the message alone', () => {
    const { message, param } = refusal({ '': 1 })
    expect([message, param]).toEqual(['"": this endpoint has no such field.', undefined])
  })

  test.each<[string, object]>([
    ['foo', { foo: 1 }],
    ['max_tool_calls', { max_tool_calls: 3 }],
    ['presence_penalty', { presence_penalty: 0.1 }],
    ['frequency_penalty', { frequency_penalty: -1 }],
    ['top_logprobs', { top_logprobs: 2 }],
    ['prompt', { prompt: { id: 'pmpt_1' } }],
    ['include', { include: ['message.output_text.logprobs'] }],
    ['text.format.type', { text: { format: { type: 'grammar' } } }],
    ['text.format.name', { text: { format: { type: 'json_schema', schema: {} } } }],
    ['text.format.schema', { text: { format: { type: 'json_schema', name: 'x' } } }],
    ['text.format.schema', { text: { format: { ...inSchema, schema: { title: 'x'.repeat(100_001) } } } }],
    ['text.format.schema', { text: { format: { ...inSchema, schema: { enum: Array(40_000).fill(10) } } } }],
    ['parallel_tool_calls', { parallel_tool_calls: false, tools: [f] }],
    ['tools.0.type', { tools: [{ type: 'web_search' }] }],
    ['tools.1.name', { tools: [f, f] }],
    ['tools.0.name', { tools: [{ type: 'function' }] }],
    ['tool_choice', { tool_choice: 'required' }],
    ['tool_choice.name', { tool_choice: { type: 'function', name: 'g' }, tools: [f] }],
    ['tool_choice.type', { tool_choice: { type: 'mcp' }, tools: [f] }],
    ['tool_choice.tools.0', { tool_choice: { type: 'allowed_tools', tools: [{ type: 'function', name: 'g' }] } }],
    ['input', { input: '' }],
    ['input', { input: [] }],
    ['input', { input: [{ role: 'assistant', content: 'so' }] }],
    ['input', { input: [user(text), { role: 'assistant', content: 'I begin with' }] }],
    ['input.0.type', { input: [{ type: 'web_search_call' }, user(text)] }],
    ['input.1.encrypted_content', { input: [user(text), { ...compaction, encrypted_content: 'other' }, user(text)] }],
    ['input', { input: [user(text), compaction] }],
    ['input.0.content.0', { input: [user({ type: 'input_audio' })] }],
    ['input.0.content.0', { input: [user(file({ file_id: 'file-1' }))] }],
    ['input.0.content.0', { input: [user({ type: 'input_image', file_id: 'file-1' })] }],
    ['input.0.content.1.image_url', { input: [user(text, image('data:image/tiff;base64,AAAA'))] }],
    ['input.0.content.0.image_url', { input: [user(image('data:image/png;base64,AAAA'))] }],
    ['input.0.content.0.image_url', { input: [user(image('data:image/png;base64,!!!!'))] }],
    ['input.0.content.0.image_url', { input: [user(image('data:image/png,text'))] }],
    ['input.0.content.0.image_url', { input: [user(image('file:///etc/passwd'))] }],
    ['input.0.content.0.file_data', { input: [user(file({ file_data: 'AAAA' }))] }],
    ['input.0.content.0.file_data', { input: [user(file({ file_data: 'data:application/zip;base64,AAAA' }))] }],
    ['input.0.content.0.file_url', { input: [user(file({ file_url: 'ftp://x/y' }))] }],
    ['input', { input: [user(...Array.from({ length: 9 }, () => image('https://example.com/x.png')))] }],
    ['input.0.content.0', { input: [{ role: 'assistant', content: [image()] }, user(text)] }],
    ['input.1.output.0', { input: [user(text), { type: 'function_call_output', call_id: 'c', output: [image()] }] }],
    ['input', { input: [user(image()), { type: 'function_call_output', call_id: 'c', output: 'x' }] }],
  ])('%s: %j', (param, over) => {
    const error = refusal(over)
    expect(error).toMatchObject({ kind: 'invalid', param })
    expect(error.message.startsWith(`${param}: `)).toBe(true)
  })

  test('an image is refused for a model that OpenClaw shows no images', () => {
    expect(refusal({ model: 'gpt-4', input: [user(text, image())] })).toMatchObject({
      kind: 'invalid',
      param: 'input.0',
    })
    const asOwn = (model: string) => ask({ model: 'openclaw', input: [user(image())] }, { ...to, model })
    expect(() => asOwn('gpt-4')).toThrow(/images/)
    expect(asOwn(seeing).asked).toMatchObject({ model: 'openclaw' })
  })

  test.each([
    ['anthropic', 'claude-sonnet-4-20250514'],
    ['openai', 'gpt-4o'],
    ['openai', 'a-model-in-no-table'],
    ['gemini', 'gemini-3.1-pro-preview'],
  ] as const)('an image is not refused for %s’s %s', (provider, model) => {
    expect(ask({ model, input: [user(text, image())] }, { ...to, provider }).asked).toMatchObject({ model: 'openclaw' })
  })

  test('a format is repeated, and its schema is in the instructions', () => {
    const { asked, echo } = ask({ instructions: 'Be brief.', text: { format: inSchema } })
    expect(echo.text).toEqual({ format: { ...inSchema, description: null, strict: null } })
    expect(echo.instructions).toBe('Be brief.')
    expect(asked.instructions).toMatch(/^Be brief\.\n\n[\s\S]*\{"type":"object"\}$/)
    expect(ask({ text: { format: { type: 'json_object' } } }).asked.instructions).toContain('JSON object')
  })

  test('a model that is shut down is refused with its successor, before anything else', () => {
    const body = { model: 'gemini-2.0-flash', input: [user(text, image())], nonsense: 1 }
    expect(() => ask(body as never, { ...to, provider: 'gemini' })).toThrow(
      'model: Google shut down gemini-2.0-flash on 2026-06-01. Use gemini-2.5-flash.',
    )
  })

  test('a model of another provider is refused with some of its own', () => {
    for (const model of ['gpt-4o', 'openai/gpt-4o', 'gemini-2.0-flash']) {
      expect(() => ask({ model }, { ...to, provider: 'anthropic' })).toThrow(
        `model: This instance uses anthropic: ${model} is no model of that provider. Use one such as claude-`,
      )
    }
  })

  test('media that is too large is a 413', () => {
    const large = (bytes: number, head: string) => head + 'A'.repeat(Math.ceil(bytes / 3) * 4)
    const picture = image(large(10 * 1024 * 1024 + 3, 'data:image/png;base64,'))
    expect(refusal({ input: [user(picture)] }).kind).toBe('too_large')
    const pdf = file({ file_data: large(5 * 1024 * 1024 + 3, 'data:application/pdf;base64,') })
    expect(refusal({ input: [user(pdf)] }).kind).toBe('too_large')
    const long = Buffer.from('x'.repeat(60_001)).toString('base64')
    expect(refusal({ input: [user(file({ file_data: long, filename: 'a.md' }))] }).kind).toBe('too_large')
  })
})

describe('the request to OpenClaw', () => {
  test('has no field that is null or neutral', () => {
    const nulls = Object.fromEntries(
      Object.keys(Schema.properties).flatMap((name) => (['model', 'input'].includes(name) ? [] : [[name, null]])),
    )
    const management = { context_management: [{ type: 'compaction', compact_threshold: 5000 }] }
    const neutral = {
      ...management,
      background: false,
      top_logprobs: 0,
      presence_penalty: 0,
      parallel_tool_calls: true,
      user: 'u',
    }
    for (const over of [{}, nulls, neutral, { text: { format: { type: 'text' }, verbosity: 'low' } }]) {
      expect(ask(over).asked).toEqual({
        model: 'openclaw',
        input: [{ type: 'message', role: 'user', content: 'hello' }],
      })
    }
  })

  test('has images and files in OpenClaw’s form', () => {
    const data = Buffer.from('notes').toString('base64')
    const input = [user(text, image(), image('https://x.example/a.png'), file({ file_data: data, filename: 'a.md' }))]
    expect(ask({ input }).asked.input).toEqual([
      {
        type: 'message',
        role: 'user',
        content: [
          text,
          { type: 'input_image', source: { type: 'base64', media_type: 'image/png', data: png.split(',')[1] } },
          { type: 'input_image', source: { type: 'url', url: 'https://x.example/a.png' } },
          { type: 'input_file', source: { type: 'base64', media_type: 'text/markdown', data, filename: 'a.md' } },
        ],
      },
    ])
  })

  test('has the images of earlier messages in the last one, because OpenClaw drops them elsewhere', () => {
    const { input } = ask({ input: [user(text, image()), { role: 'assistant', content: 'a cat' }, user(text)] }).asked
    expect(input).toMatchObject([
      { content: 'look' },
      { role: 'assistant' },
      { content: [{ type: 'input_text' }, { type: 'input_image' }] },
    ])
  })

  test('has the summary of a compaction in front of the message', () => {
    const { input } = ask({ input: [compaction, user(text)] }).asked
    expect(input).toEqual([
      { type: 'message', role: 'assistant', content: 'Summary of the earlier conversation: Ada lives in Rome.' },
      { type: 'message', role: 'user', content: 'look' },
    ])
  })

  test('has only the allowed tools', () => {
    const g = { type: 'function', name: 'g', description: 'd', parameters: { type: 'object' }, strict: true }
    const choice = { type: 'allowed_tools', mode: 'required', tools: [{ type: 'function', name: 'g' }] }
    const { asked, echo } = ask({ tools: [f, g], tool_choice: choice })
    expect(asked).toMatchObject({
      tools: [{ type: 'function', name: 'g', description: 'd', parameters: { type: 'object' } }],
      tool_choice: 'required',
    })
    expect(echo.tools.map(({ name }) => name)).toEqual(['f', 'g'])
    expect(echo.tool_choice).toEqual(choice)
    expect(echo.tools[1]?.strict, 'the model is not made to follow the schema').toBeNull()
  })
})

test('a response repeats only the sampling parameters that reach the model', () => {
  const sampling = { temperature: 0.2, top_p: 0.3 }
  expect(ask(sampling)).toMatchObject({ asked: sampling, echo: sampling })
  const thinking = ask({ ...sampling, model: 'openai/gpt-6-astra' })
  expect(thinking.asked).not.toHaveProperty('temperature')
  expect(thinking.echo).toMatchObject({ temperature: 1, top_p: 1 })
  expect(ask({ ...sampling, model: 'x' }, { ...to, provider: 'anthropic' }).echo).toMatchObject({
    temperature: 0.2,
    top_p: 1,
  })
})

test('the faults of a body are those of the shape that its type selects', () => {
  const body = { model: 'm', input: [{ type: 'message', role: 'user', content: [{ type: 'input_text', text: 5 }] }] }
  expect((validate as (body: unknown) => boolean)(body)).toBe(false)
  const errors = (validate as { errors?: { instancePath: string }[] }).errors ?? []
  expect(errors.some(({ instancePath }) => instancePath === '/input/0/content/0/text')).toBe(true)
})

test('only a reference to an item may leave out its type', () => {
  const fits = (item: object) =>
    (validate as (body: unknown) => boolean)({ model: seeing, input: [item, { role: 'user', content: 'hi' }] })
  expect([{ id: 'msg_1' }, { id: 'msg_1', type: null }].map(fits)).toEqual([true, true])
  const others = [{}, { type: null }, { id: null }, { id: 'fc_1', call_id: 'c', output: 'x' }]
  expect(others.map(fits)).toEqual([false, false, false, false])
})

describe('a chat completion', () => {
  const body = (over: object): CreateChatCompletion => ({
    model: seeing,
    messages: [{ role: 'user', content: 'hi' }],
    ...over,
  })
  function chatRefusal(over: object): AppError {
    const { request, toChatError } = (() => {
      try {
        return readChatRequest(body(over))
      } catch (error) {
        return { request: null, toChatError: () => error }
      }
    })()
    try {
      if (!request) throw null
      const read = readRequest(request, to)
      skipKnownItems(read.items, noKnownItems)
      gatewayRequest(read)
    } catch (error) {
      return toChatError(error) as AppError
    }
    throw new Error('it was not refused')
  }

  test.each<[string, object]>([
    ['foo', { foo: 1 }],
    ['n', { n: 2 }],
    ['stop', { stop: 'x' }],
    ['stop', { stop: ['x'] }],
    ['logprobs', { logprobs: true }],
    ['logit_bias', { logit_bias: { 5: 1 } }],
    ['modalities', { modalities: ['text', 'audio'] }],
    ['audio', { audio: {} }],
    ['functions', { functions: [] }],
    ['function_call', { function_call: 'auto' }],
    ['web_search_options', { web_search_options: {} }],
    ['presence_penalty', { presence_penalty: 1 }],
    ['response_format.type', { response_format: { type: 'grammar' } }],
    ['response_format.json_schema.name', { response_format: { type: 'json_schema' } }],
    ['response_format.json_schema.schema', { response_format: { type: 'json_schema', json_schema: { name: 'x' } } }],
    ['tool_choice.function.name', { tool_choice: { type: 'function', function: { name: 'f' } } }],
    ['messages', { messages: [{ role: 'assistant', content: 'x' }] }],
    ['messages.0.content.0', { messages: [{ role: 'user', content: [{ type: 'input_audio' }] }] }],
    [
      'messages.0.content.0.image_url',
      { messages: [{ role: 'user', content: [{ type: 'image_url', image_url: { url: 'x' } }] }] },
    ],
    [
      'messages.1.tool_call_id',
      {
        messages: [
          { role: 'user', content: 'x' },
          { role: 'tool', content: 'y' },
        ],
      },
    ],
    [
      'messages.1.tool_call_id',
      {
        messages: [
          { role: 'user', content: 'x' },
          { role: 'tool', content: 'y', tool_call_id: 'nobody' },
        ],
      },
    ],
  ])('is refused as %s: %j', (param, over) => {
    expect(chatRefusal(over)).toMatchObject({ kind: 'invalid', param })
  })

  test.each<[object]>([
    [{ type: 'allowed_tools', allowed_tools: { tools: 'x' } }],
    [{ type: 'allowed_tools', allowed_tools: { tools: [null] } }],
    [{ type: 'allowed_tools', allowed_tools: null }],
    [{ type: 'function', function: 'f' }],
  ])('with the malformed tool_choice %j does not match the schema', (choice) => {
    const fits = taggedBodies({ schema: CreateChatCompletion, method: 'POST', url: '/', httpPart: 'body' })
    expect((fits as (body: unknown) => boolean)(body({ tool_choice: choice }))).toBe(false)
  })

  test('chooses tools as a response does, and ignores other fields of tool_choice', () => {
    const over = (choice: object) =>
      body({ tools: [{ type: 'function', function: { name: 'f' } }], tool_choice: choice as never })
    const chosen = (choice: object) => readRequest(readChatRequest(over(choice)).request, to).toolChoice
    const odd = { name: 'f', type: 'allowed_tools', tools: [null] }
    expect(chosen({ type: 'function', function: odd })).toEqual({ type: 'function', name: 'f' })
    const allowed = { mode: 'required', type: 'function', tools: [{ type: 'function', function: { name: 'f' } }] }
    expect(chosen({ type: 'allowed_tools', allowed_tools: allowed })).toBe('required')
    expect(chosen({ type: 'allowed_tools' })).toBe('auto')
  })

  test('has the format of a response', () => {
    const { type, ...json_schema } = inSchema
    const over = { response_format: { type, json_schema: { ...json_schema, strict: true } } }
    const { echo } = readRequest(readChatRequest(body(over)).request, to)
    expect(echo.text.format).toEqual({ ...inSchema, description: null, strict: true })
  })

  test('sends its whole conversation to the agent', () => {
    const messages = [
      { role: 'system', content: 'be brief' },
      {
        role: 'user',
        content: [
          { type: 'text', text: 'weather?' },
          { type: 'image_url', image_url: { url: png } },
        ],
      },
      {
        role: 'assistant',
        content: null,
        tool_calls: [{ id: 'c1', type: 'function', function: { name: 'f', arguments: '{}' } }],
      },
      { role: 'tool', tool_call_id: 'c1', content: 'sunny' },
      { role: 'assistant', content: 'sunny' },
      { role: 'user', content: 'thanks' },
    ]
    const over = { messages, max_tokens: 5, tools: [{ type: 'function', function: { name: 'f' } }], n: 1, stop: null }
    const read = readRequest(readChatRequest(body(over)).request, to)
    expect(skipKnownItems(read.items, noKnownItems)).toEqual({ offset: 0, answeredCallIds: [] })
    expect(gatewayRequest(read)).toMatchObject({
      max_output_tokens: 5,
      tools: [{ type: 'function', name: 'f' }],
      input: [
        { role: 'system', content: 'be brief' },
        { role: 'user', content: 'weather?' },
        { type: 'function_call', call_id: 'c1' },
        { type: 'function_call_output', call_id: 'c1', output: 'sunny' },
        { role: 'assistant', content: 'sunny' },
        { role: 'user', content: [{ text: 'thanks' }, { type: 'input_image' }] },
      ],
    })
  })
})
