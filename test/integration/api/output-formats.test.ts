import OpenAI from 'openai'
import { zodResponseFormat, zodTextFormat } from 'openai/helpers/zod'
import { ResponsesWS } from 'openai/resources/responses/ws'
import { afterAll, afterEach, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { z } from 'zod'
import { requireErrorBody } from '../../support/error-body.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { present } from '../../support/present.ts'
import { expectWholeStream, faultsOfResponse, readEvents } from '../../support/response-schemas.ts'
import {
  type Answer,
  answerFailed,
  answerJson,
  delta,
  responseObject,
  sse,
  startStream,
  startStubGateway,
  streamHead,
} from '../../support/stub-responses-gateway.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

let id: string
const gateway = await startStubGateway(() => {})
const chowder = await openTestChowder({ sandboxes: new FakeDriver() })
const url = await chowder.app.listen({ port: 0, host: '127.0.0.1' })
const { key } = await chowder.signUp()
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})
beforeEach(async () => {
  gateway.received.length = 0
  id = await chowder.createReady(key, gateway.endpoint)
})
afterEach(() => {
  for (const { response } of gateway.received) response.destroy()
})

const valid = '{"city":"Rome","people":3}'
const invalid = '{"city":"Rome","people":"three"}'
const fault = 'answer/people must be'
const Place = z.object({ city: z.string(), people: z.number().int() })
const schema = {
  type: 'object',
  properties: { city: { type: 'string' }, people: { type: 'integer' } },
  required: ['city', 'people'],
  additionalProperties: false,
}
const format = { type: 'json_schema', name: 'place', schema }
const inFormat = { model: 'openclaw', input: 'where?', text: { format } }
const call = { type: 'function_call', id: 'fc_1', call_id: 'call_1', name: 'find', arguments: '{}' }

const message = (text: string) => ({
  type: 'message',
  id: 'msg_1',
  role: 'assistant',
  content: [{ type: 'output_text', text }],
})

/** Answers as a stream in pieces, or as JSON. */
const answerText =
  (text: string, over: object = {}): Answer =>
  (response, received) => {
    const end = responseObject({ output: [message(text)], ...over })
    if (received.body.stream !== true) return answerJson(200, end)(response, received)
    const middle = Math.floor(text.length / 2)
    const pieces = [text.slice(0, middle), text.slice(middle)].map(delta).join('')
    startStream(response).end(`${streamHead}${pieces}${sse({ type: `response.${end.status}`, response: end })}`)
  }

/** Gives one answer after the other. */
function answerInTurn(...answers: Answer[]): void {
  gateway.answer = (response, received) => present(answers.shift())(response, received)
}
const inputs = () => gateway.received.map(({ body }) => body.input)
const sessionsAsked = () => new Set(gateway.received.map(({ headers }) => headers['x-openclaw-session-key']))

const openai = () => new OpenAI({ baseURL: `${url}/v1/instances/${id}`, apiKey: key, maxRetries: 0 })
const headers = () => ({ authorization: `Bearer ${key}`, 'content-type': 'application/json' })
const post = (body: object, path = 'responses') =>
  fetch(`${url}/v1/instances/${id}/${path}`, { method: 'POST', headers: headers(), body: JSON.stringify(body) })
async function refusal(answer: Response) {
  const body = (await answer.json()) as { detail: string; error: { code: string; param: string; message: string } }
  requireErrorBody(answer.status, body, answer.headers.get('x-request-id'))
  return { status: answer.status, ...body.error, shouldRetry: answer.headers.get('x-should-retry') }
}
const stored = async (): Promise<Record<string, unknown>> => {
  const row = await until('the row', async () => {
    const { rows } = await chowder.database.pool.query('SELECT id FROM responses WHERE instance_id = $1', [id])
    return rows[0] as { id: string } | undefined
  })
  const name = `resp_${row.id.replaceAll('-', '')}`
  return (await (await fetch(`${url}/v1/instances/${id}/responses/${name}`, { headers: headers() })).json()) as never
}

describe('a response in a format', () => {
  test('is parsed by the official client', async () => {
    answerInTurn(answerText(valid))
    const text = { format: zodTextFormat(Place, 'place') }
    const response = await openai().responses.parse({ model: 'openclaw', input: 'where?', text })
    expect(response.output_parsed).toEqual({ city: 'Rome', people: 3 })
    expect(response.text?.format).toMatchObject({ type: 'json_schema', name: 'place', strict: true })
    expect(String(present(gateway.received[0]).body.instructions)).toContain('"people"')
    expect(present(gateway.received[0]).body).not.toHaveProperty('text')
  })

  test('is repeated in the format of the response, and stored with it', async () => {
    answerInTurn(answerText(`Here it is:\n\n\`\`\`json\n${valid}\n\`\`\``))
    const response = (await (await post(inFormat)).json()) as { output: unknown }
    expect(faultsOfResponse(response)).toEqual([])
    expect(response).toMatchObject({
      status: 'completed',
      output: [{ content: [{ text: valid }] }],
      text: { format: { ...format, description: null, strict: null } },
    })
    expect(await stored()).toEqual(response)
  })

  test('is asked for once more in the same session, and has the tokens of both answers', async () => {
    answerInTurn(answerText(invalid), answerText(valid))
    const response = await (await post(inFormat)).json()
    expect(response).toMatchObject({
      status: 'completed',
      output: [{ content: [{ text: valid }] }],
      usage: { input_tokens: 2, output_tokens: 4, total_tokens: 6 },
    })
    expect(inputs()).toEqual(['where?', expect.stringContaining(fault)])
    expect(sessionsAsked().size).toBe(1)
    const [first, second] = gateway.received.map(({ body }) => ({ ...body, input: null }))
    expect(second).toEqual(first)
  })

  test('that is invalid twice fails, and says where, but not in the log', async () => {
    answerInTurn(answerText(invalid), answerText(invalid))
    expect(await refusal(await post(inFormat))).toMatchObject({
      status: 502,
      code: 'invalid_output',
      message: expect.stringContaining(fault),
      shouldRetry: 'false',
    })
    await until('the end to be stored', async () => (await stored()).status === 'failed')
    expect(await stored()).toMatchObject({ error: { code: 'invalid_output' }, output: [] })
    const lines = chowder.logged.filter((line) => line.includes('invalid_output'))
    expect(lines).toHaveLength(1)
    expect(lines[0]).not.toContain('people')
    expect(gateway.received).toHaveLength(2)
  })

  test('that ends at the token limit or with a call is not checked', async () => {
    answerInTurn(answerText('{"city":"Ro', { status: 'incomplete' }), answerText('', { output: [call] }))
    const cut = await (await post(inFormat)).json()
    expect(cut).toMatchObject({ status: 'incomplete', output: [{ content: [{ text: '{"city":"Ro' }] }] })
    const called = await (await post({ ...inFormat, tools: [{ type: 'function', name: 'find' }] })).json()
    expect(called).toMatchObject({ status: 'completed', output: [{ type: 'function_call', call_id: 'call_1' }] })
    expect(gateway.received).toHaveLength(2)
  })

  test('fails when the agent does in its second answer, and is not repeated by clients', async () => {
    answerInTurn(answerText(invalid), answerFailed(503, 'api_error', 'upstream provider overloaded'))
    expect(await refusal(await post(inFormat))).toMatchObject({ code: 'provider_error', shouldRetry: 'false' })
  })

  test('may be any JSON object', async () => {
    answerInTurn(answerText('[]'), answerText('{"a":1}'))
    const response = await (await post({ ...inFormat, text: { format: { type: 'json_object' } } })).json()
    expect(response).toMatchObject({
      output: [{ content: [{ text: '{"a":1}' }] }],
      text: { format: { type: 'json_object' } },
    })
  })

  test.each([
    [{ type: 'objekt' }, 'must be equal to one of the allowed values'],
    [{ $ref: 'https://example.com/schema.json' }, "can't resolve reference"],
  ])('is refused with the schema %j, before the agent is asked', async (wrong, why) => {
    const text = { format: { ...format, schema: wrong } }
    expect(await refusal(await post({ ...inFormat, text }))).toMatchObject({
      status: 400,
      code: 'invalid_value',
      param: 'text.format.schema',
      message: expect.stringContaining(why),
    })
    expect(gateway.received).toHaveLength(0)
  })
})

describe('a stream in a format', () => {
  test('has the text in one delta, after it was checked', async () => {
    answerInTurn(answerText(invalid), answerText(`\`\`\`\n${valid}\n\`\`\``))
    const { events, isDone } = readEvents(await (await post({ ...inFormat, stream: true })).text())
    expectWholeStream(events)
    expect(isDone).toBe(true)
    const deltas = events.filter(({ type }) => type === 'response.output_text.delta')
    expect(deltas).toMatchObject([{ delta: valid }])
    expect(events.at(-1)).toMatchObject({ type: 'response.completed', response: { usage: { total_tokens: 6 } } })
  })

  test('begins before the answer', async () => {
    let end = () => {}
    answerInTurn((response) => {
      startStream(response).write(streamHead + delta('{"city"'))
      end = () =>
        response.end(delta(':"Rome","people":3}') + sse({ type: 'response.completed', response: responseObject() }))
    })
    const answer = await post({ ...inFormat, stream: true })
    const reader = present(answer.body).pipeThrough(new TextDecoderStream()).getReader()
    const begun = await reader.read()
    expect(begun.value).toContain('response.in_progress')
    expect(begun.value).not.toContain('delta')
    end()
    let rest = ''
    for (let step = await reader.read(); !step.done; step = await reader.read()) rest += step.value
    expect(rest).toContain(JSON.stringify(valid))
  })

  test('that is invalid twice fails without any text', async () => {
    answerInTurn(answerText('Rome'), answerText('Rome'))
    const { events } = readEvents(await (await post({ ...inFormat, stream: true })).text())
    expectWholeStream(events)
    expect(events.map(({ type }) => type)).toEqual(['response.created', 'response.in_progress', 'response.failed'])
    expect(events.at(-1)).toMatchObject({
      response: { error: { code: 'invalid_output', message: expect.stringContaining('it is not JSON') } },
    })
  })

  test('that the client leaves ends the turn', async () => {
    answerInTurn((response) => void startStream(response).write(streamHead + delta('{"city"')))
    const leaving = new AbortController()
    const body = JSON.stringify({ ...inFormat, stream: true })
    const path = `${url}/v1/instances/${id}/responses`
    await fetch(path, { method: 'POST', headers: headers(), body, signal: leaving.signal })
    leaving.abort()
    await until('the gateway to be left', () => gateway.received[0]?.abortedAt !== undefined)
    expect(gateway.received).toHaveLength(1)
  })

  test('comes over a WebSocket too', async () => {
    answerInTurn(answerText(invalid), answerText(valid))
    const socket = new ResponsesWS(openai(), { headers: headers() } as never)
    onTestFinished(() => socket.close())
    const deltas: string[] = []
    const { promise: ended, resolve } = Promise.withResolvers<string>()
    socket.on('event', (event) => {
      if (event.type === 'response.output_text.delta') deltas.push(event.delta)
      if (event.type === 'response.completed' || event.type === 'response.failed') resolve(event.type)
    })
    socket.send({ type: 'response.create', ...inFormat } as never)
    expect(await ended).toBe('response.completed')
    expect(deltas).toEqual([valid])
  })
})

describe('a chat completion in a format', () => {
  const response_format = zodResponseFormat(Place, 'place')
  const body = { model: 'openclaw', messages: [{ role: 'user' as const, content: 'where?' }], response_format }

  test('is parsed by the official client, after a second answer in the same session', async () => {
    answerInTurn(answerText(invalid), answerText(valid))
    const completion = await openai().chat.completions.parse(body)
    expect(completion.choices[0]?.message.parsed).toEqual({ city: 'Rome', people: 3 })
    expect(completion.usage?.total_tokens).toBe(6)
    expect(sessionsAsked().size).toBe(1)
    expect(inputs().at(-1)).toContain(fault)
  })

  test('streams its text in one chunk', async () => {
    answerInTurn(answerText(valid))
    const contents: unknown[] = []
    for await (const chunk of await openai().chat.completions.create({ ...body, stream: true })) {
      contents.push(chunk.choices[0]?.delta.content)
    }
    expect(contents).toEqual(['', valid, undefined])
  })

  test('that is invalid twice is an error', async () => {
    answerInTurn(answerText('x'), answerText('y'), answerText('x'), answerText('y'))
    expect(await refusal(await post(body, 'chat/completions'))).toMatchObject({
      status: 502,
      code: 'invalid_output',
      message: expect.stringContaining('it is not JSON'),
    })
    const stream = await (await post({ ...body, stream: true }, 'chat/completions')).text()
    expect(stream).toContain('"code":"invalid_output"')
    expect(stream).not.toContain('[DONE]')
  })

  test('is refused with a schema that is invalid', async () => {
    const json_schema = { name: 'x', schema: { type: 'objekt' } }
    const wrong = { ...body, response_format: { type: 'json_schema', json_schema } }
    expect(await refusal(await post(wrong, 'chat/completions'))).toMatchObject({
      status: 400,
      param: 'response_format.json_schema.schema',
      message: expect.stringMatching(/^response_format\.json_schema\.schema: is not valid/),
    })
    expect(gateway.received).toHaveLength(0)
  })
})
