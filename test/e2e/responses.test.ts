import { createOpenAI } from '@ai-sdk/openai'
import { generateText, stepCountIs, streamText, tool } from 'ai'
import OpenAI from 'openai'
import { ResponsesWS } from 'openai/resources/responses/ws'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { z } from 'zod'
import { connectGateway } from '#openclaw/gateway/gateway.ts'
import { startAgent, type TestAgent } from '../support/agent.ts'
import type { Api } from '../support/api-client.ts'
import { askGateway, type ChowderProcess, findGateway } from '../support/chowder-process.ts'
import type { FakeModelProvider } from '../support/fake-model-provider.mjs'
import { present } from '../support/present.ts'
import { expectWholeStream, faultsOfResponse, readEvents } from '../support/response-schemas.ts'
import { until } from '../support/until.ts'

/** One that OpenClaw tells a temperature, and one that it does not. */
const plain = 'claude-sonnet-4-20250514'
const seeing = 'claude-opus-5'
const png = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='
const call = '[[fake:tool=get_weather {"city":"Rome"}]]'
const weather = {
  type: 'function' as const,
  name: 'get_weather',
  description: 'Tells the weather of a city.',
  parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
  strict: null as unknown as boolean,
}

/** One page with many lines of it: pages with little text are shown as images. */
function pdfSaying(text: string): Buffer {
  const lines = Array.from(
    { length: 30 },
    (_, line) => `BT /F1 10 Tf 20 ${780 - line * 20} Td (${text}, line ${line}) Tj ET`,
  )
  const content = lines.join('\n')
  const objects = [
    '<</Type/Catalog/Pages 2 0 R>>',
    '<</Type/Pages/Kids[3 0 R]/Count 1>>',
    '<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>',
    `<</Length ${content.length}>>\nstream\n${content}\nendstream`,
    '<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>',
  ]
  let pdf = '%PDF-1.4\n'
  const places = objects.map((object, at) => {
    const place = `${pdf.length}`.padStart(10, '0')
    pdf += `${at + 1} 0 obj\n${object}\nendobj\n`
    return `${place} 00000 n \n`
  })
  const table = `xref\n0 6\n0000000000 65535 f \n${places.join('')}`
  return Buffer.from(`${pdf}${table}trailer<</Size 6/Root 1 0 R>>\nstartxref\n${pdf.length}\n%%EOF`)
}

describe('clients of the Responses format and a real agent', () => {
  let provider: FakeModelProvider
  let agent: TestAgent
  let chowder: ChowderProcess
  let key: string
  let client: Api
  let id: string
  /** How many answers were held against the format. */
  let judged = 0

  /** What a client fetches, with every object and event in it held against the format. */
  const judge: typeof fetch = async (input, init) => {
    const answer = await fetch(input, init)
    const text = await answer.text()
    if (!/\/responses(\/(?!compact$)|$)/.test(String(input))) return new Response(text, answer)
    if (answer.headers.get('content-type')?.startsWith('text/event-stream')) {
      const { events, isDone } = readEvents(text)
      expectWholeStream(events)
      expect(isDone).toBe(true)
      judged += 1
    } else if (text.startsWith('{"id":"resp_') && answer.ok && init?.method !== 'DELETE') {
      expect(faultsOfResponse(JSON.parse(text))).toEqual([])
      judged += 1
    }
    return new Response(text === '' ? null : text, { status: answer.status, headers: answer.headers })
  }
  const baseURL = (session?: string) => `${chowder.url}/v1/instances/${id}${session ? `/session/${session}` : ''}`
  const openai = (session?: string) =>
    new OpenAI({ baseURL: baseURL(session), apiKey: key, maxRetries: 0, fetch: judge as never })
  const sdk = (session?: string) => createOpenAI({ baseURL: baseURL(session), apiKey: key, fetch: judge })
  const asked = () => present(provider.requests.at(-1))

  beforeAll(async () => {
    agent = await startAgent()
    ;({ provider, chowder, key, client, id } = agent)
  })
  afterAll(() => agent?.close())
  beforeEach(() => {
    provider.requests.length = 0
  })

  // First in the file: the agent has just begun to run, and its default session has had no turn.
  describe('turns that begin together in a session that does not exist', () => {
    const say = async (session: string | undefined, input: string, stream: boolean) => {
      const answer = await judge(`${baseURL(session)}/responses`, {
        method: 'POST',
        headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json' },
        body: JSON.stringify({ model: 'openclaw', input, stream }),
      })
      const text = await answer.text()
      return {
        status: answer.status,
        text,
        isCompleted: text.includes('"status":"completed"') && text.includes('fake-reply'),
      }
    }
    /** Expects that all are answered, and that the model was asked each once, with all that came before it. */
    async function together(count: number, session?: string) {
      provider.requests.length = 0
      const inputs = Array.from({ length: count }, (_, at) => `number ${at} of ${session}`)
      const answers = await Promise.all(inputs.map((input, at) => say(session, input, at % 2 === 1)))
      for (const { status, text, isCompleted } of answers) {
        expect(status, text).toBe(200)
        expect(isCompleted, text).toBe(true)
      }
      expect(provider.requests.map(({ last }) => last).toSorted()).toEqual(inputs.toSorted())
      expect(provider.requests.map(({ turns }) => turns)).toEqual(inputs.map((_, at) => at + 1))
    }

    it('are all answered in the default session of a new agent', async () => {
      await together(2)
      expect((await client.post(`/v1/instances/${id}/sessions/main/reset`)).status).toBe(204)
    })

    it('are all answered, ten at once', () => together(10, 'ten'))

    it('are all answered, two at once, and in a session that was just deleted', { tags: ['long'] }, async () => {
      await together(2, 'a')
      expect((await client.delete(`/v1/instances/${id}/sessions/a`)).status).toBe(204)
      await together(2, 'a')
    })

    it('are all answered, two at once, in one session after another', { tags: ['long'] }, async () => {
      for (const session of ['b', 'c', 'd']) await together(2, session)
    })

    async function besideOpenclaw(sessions: string[]): Promise<void> {
      const gateway = present(await findGateway(id))
      const direct = (session: string) =>
        askGateway(gateway, '/v1/responses', {
          method: 'POST',
          headers: {
            authorization: `Bearer ${gateway.token}`,
            'content-type': 'application/json',
            'x-openclaw-session-key': `s-${Buffer.from(session).toString('hex')}`,
          },
          body: JSON.stringify({ model: 'openclaw', input: 'from a channel' }),
        })
      for (const [at, session] of sessions.entries()) {
        const other = direct(session)
        const { status, text, isCompleted } = await say(session, `mine ${session}`, at % 2 === 1)
        expect(status, text).toBe(200)
        expect(isCompleted, text).toBe(true)
        await other
        expect(provider.requests.filter(({ last }) => last === `mine ${session}`)).toHaveLength(1)
      }
    }
    const beside = 'are answered too when OpenClaw begins one of them, and the model is asked once'
    it(beside, () => besideOpenclaw(['k']))
    it(`${beside}, in one session after another`, { tags: ['long'] }, () => besideOpenclaw(['l', 'm', 'n', 'o']))
  })

  describe('the official OpenAI client', () => {
    it('reads again what was answered, and goes on from it', async () => {
      const { responses } = openai()
      const first = await responses.create({ model: 'openclaw', input: 'my name is Ada', metadata: { a: 'b' } })
      expect(first).toMatchObject({ status: 'completed', metadata: { a: 'b' }, model: 'openclaw' })
      expect(first.usage?.output_tokens).toBeGreaterThan(0)
      expect(await responses.retrieve(first.id)).toMatchObject({ id: first.id, output: first.output })
      const items = await responses.inputItems.list(first.id)
      expect(items.data).toMatchObject([{ role: 'user', content: [{ text: 'my name is Ada' }] }])
      const second = await responses.create({ model: 'openclaw', input: 'and?', previous_response_id: first.id })
      expect(second.output_text).toContain('turns=2 last="and?" first="my name is Ada"')
      const again = responses.create({ model: 'openclaw', input: 'and?', previous_response_id: first.id })
      await expect(again).rejects.toMatchObject({ status: 400, param: 'previous_response_id' })
      await responses.delete(first.id)
      await expect(responses.retrieve(first.id)).rejects.toMatchObject({ status: 404 })
    })

    it('compacts a conversation, and begins another session with it', async () => {
      const { responses } = openai('long')
      // The conversation to summarize contains the directive, too.
      const said = await responses.create({ model: plain, input: 'I am Ada [[fake:say=Ada lives in Rome]]' })
      const ephemeral = async () => {
        const { body } = await client.get('/v1/organization/usage?group_by=session')
        return body.filter((row: { session_key: string | null }) => row.session_key?.startsWith('c-')).length as number
      }
      const before = await ephemeral()
      const compacted = await responses.compact({ model: plain, previous_response_id: said.id })
      expect(compacted.object).toBe('response.compaction')
      expect(compacted.usage.output_tokens).toBeGreaterThan(0)
      expect(JSON.stringify(asked().body)).toContain('user: I am Ada')
      await until('the usage of the summary', async () => (await ephemeral()) > before)
      const input = [...compacted.output, { role: 'user' as const, content: 'where do I live?' }]
      await openai('short').responses.create({ model: plain, input: input as never })
      expect(asked().last).toContain('Summary of the earlier conversation: Ada lives in Rome')
      expect(asked().last).toContain('where do I live?')
      expect(asked().turns).toBe(1)
    })

    it('lists models', async () => {
      const listed = await openai().models.list()
      expect(listed.data.map((model) => model.id)).toEqual(expect.arrayContaining(['openclaw', plain, seeing]))
    })

    it('streams with its own helper', async () => {
      const stream = openai('helper').responses.stream({ model: 'openclaw', input: 'hello' })
      const final = await stream.finalResponse()
      expect(final.output_text).toContain('last="hello"')
    })

    async function callTool(isStreamed: boolean): Promise<void> {
      const { responses } = openai(`tools-${isStreamed}`)
      const ask = async (body: OpenAI.Responses.ResponseCreateParamsNonStreaming) =>
        isStreamed ? responses.stream({ ...body, stream: true } as never).finalResponse() : responses.create(body)
      const first = await ask({ model: 'openclaw', input: call, tools: [weather] })
      expect(first.output).toMatchObject([{ type: 'function_call', name: 'get_weather', arguments: '{"city":"Rome"}' }])
      const [made] = first.output as { call_id: string }[]
      const input = [{ type: 'function_call_output' as const, call_id: present(made).call_id, output: 'sunny as ever' }]
      const second = await ask({ model: 'openclaw', input, tools: [weather], previous_response_id: first.id })
      expect(second.output_text).toContain('sunny as ever')
      await expect(ask({ model: 'openclaw', input })).rejects.toMatchObject({ status: 400 })
    }
    it('calls a tool and gives its result, streamed', () => callTool(true))
    it('calls a tool and gives its result, plain', { tags: ['long'] }, () => callTool(false))

    it('two calls at once are two items, and both results reach the agent', async () => {
      const { responses } = openai('two')
      const both = `${call} [[fake:tool=get_weather {"city":"Oslo"}]]`
      const first = await responses.create({ model: 'openclaw', input: both, tools: [weather] })
      expect(first.output).toMatchObject([{ arguments: '{"city":"Rome"}' }, { arguments: '{"city":"Oslo"}' }])
      const input = (first.output as { call_id: string }[]).map(({ call_id }, at) => ({
        type: 'function_call_output' as const,
        call_id,
        output: `result ${at}`,
      }))
      await responses.create({ model: 'openclaw', input })
      expect(asked().last).toMatch(/result 0[\s\S]*result 1/)
    })

    async function showImage(model: string): Promise<void> {
      const input = [
        {
          role: 'user' as const,
          content: [
            { type: 'input_text' as const, text: 'look' },
            { type: 'input_image' as const, image_url: `data:image/png;base64,${png}`, detail: 'auto' as const },
          ],
        },
      ]
      const { responses } = openai(`image-${model}`)
      await responses.create({ model, input })
      expect(asked()).toMatchObject({ images: 1, last: 'look' })
      expect(JSON.stringify(asked().body)).toContain(png)
      expect(asked().body.max_tokens).toBeGreaterThanOrEqual(32_000)
    }
    it.each([seeing, 'a-model-in-no-table'])('shows an image to %s', showImage)
    it.each([plain, 'openclaw'])('shows an image to %s', { tags: ['long'] }, showImage)

    it('gives a file', async () => {
      const data = Buffer.from('a canary in a file').toString('base64')
      const content = [
        { type: 'input_text' as const, text: 'read' },
        { type: 'input_file' as const, filename: 'notes.txt', file_data: `data:text/plain;base64,${data}` },
      ]
      await openai('file').responses.create({ model: plain, input: [{ role: 'user', content }] })
      expect(asked().system).toContain('a canary in a file')
    })

    it('tells a text of 2 MiB, which is sent without its length', { tags: ['long'] }, async () => {
      const input = `begin ${'word '.repeat(2 ** 21 / 5)}end`
      await openai('long-text').responses.create({ model: plain, input })
      expect(asked().last).toMatch(/^begin (word )+end$/)
      expect(asked().last).toHaveLength(input.length)
    })

    it('gives a PDF, whose text the model reads', async () => {
      const data = pdfSaying('a canary in a PDF').toString('base64')
      const content = [
        { type: 'input_text' as const, text: 'read' },
        { type: 'input_file' as const, filename: 'notes.pdf', file_data: `data:application/pdf;base64,${data}` },
      ]
      await openai('pdf').responses.create({ model: plain, input: [{ role: 'user', content }] })
      expect(JSON.stringify(asked().body)).toContain('a canary in a PDF')
    })

    it('cancels a turn, which ends at the model’s provider', async () => {
      const { responses } = openai()
      const stream = await fetch(`${baseURL()}/responses`, {
        method: 'POST',
        headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json' },
        body: JSON.stringify({ model: plain, input: 'slow [[fake:chunk-delay=2000]]', stream: true }),
      })
      await until('the agent to speak', () => provider.requests.some(({ last }) => last.startsWith('slow')))
      const reader = present(stream.body).getReader()
      const head = Buffer.from((await reader.read()).value ?? []).toString()
      const cancelled = await responses.cancel(present(/resp_[0-9a-f]{32}/.exec(head))[0])
      expect(cancelled.status).toBe('cancelled')
      let rest = head
      for (let piece = await reader.read(); !piece.done; piece = await reader.read()) rest += Buffer.from(piece.value)
      const { events } = readEvents(rest)
      expectWholeStream(events)
      expect(events.at(-1)).toMatchObject({ type: 'response.incomplete', response: { status: 'cancelled' } })
      const slow = provider.requests.find(({ last }) => last.startsWith('slow'))
      await until('the end of the call to the provider', () => slow?.cut, 15_000)
    })
  })

  describe('the AI SDK', () => {
    it('generates a text', async () => {
      const { text, finishReason, usage } = await generateText({ model: sdk('ai')('openclaw'), prompt: 'hello ai' })
      expect(text).toContain('last="hello ai"')
      expect(finishReason).toBe('stop')
      expect(usage.outputTokens).toBeGreaterThan(0)
    })

    it('streams a text', async () => {
      const streamed = streamText({ model: sdk('ai-stream')('openclaw'), prompt: '[[fake:words=40]]' })
      const pieces: string[] = []
      for await (const piece of streamed.textStream) pieces.push(piece)
      expect(pieces.length).toBeGreaterThan(3)
      expect(pieces.join('')).toMatch(/^word1 .* word40$/)
      expect(await streamed.finishReason).toBe('stop')
    })

    async function useTools(how: 'generate' | 'stream'): Promise<void> {
      const options = {
        model: sdk(`ai-tools-${how}`)('openclaw'),
        prompt: call,
        stopWhen: stepCountIs(3),
        tools: {
          get_weather: tool({
            description: 'Tells the weather of a city.',
            inputSchema: z.object({ city: z.string() }),
            execute: async ({ city }) => `sunny in ${city}`,
          }),
        },
      }
      const result = how === 'generate' ? await generateText(options) : streamText(options)
      const [text, steps] = [await result.text, await result.steps]
      expect(steps).toHaveLength(2)
      expect(text).toContain('sunny in Rome')
      // What the session remembers is not told it again.
      expect(text).toContain('turns=2')
    }
    it('streams with tools in several steps', () => useTools('stream'))
    it('generates with tools in several steps', { tags: ['long'] }, () => useTools('generate'))

    it('shows an image', { tags: ['long'] }, async () => {
      const content = [
        { type: 'text' as const, text: 'look' },
        { type: 'file' as const, data: Buffer.from(png, 'base64'), mediaType: 'image/png' },
      ]
      await generateText({ model: sdk('ai-image')(seeing), messages: [{ role: 'user', content }] })
      expect(asked()).toMatchObject({ images: 1, last: 'look' })
    })

    it('carries a conversation on, which the agent hears once', async () => {
      const model = sdk('ai-talk')('openclaw')
      const first = await generateText({ model, prompt: 'my name is Ada' })
      const messages = [
        { role: 'user' as const, content: 'my name is Ada' },
        ...first.response.messages,
        { role: 'user' as const, content: 'and now?' },
      ]
      const { text } = await generateText({ model, messages })
      expect(text).toContain('turns=2 last="and now?" first="my name is Ada"')
    })
  })

  describe('fields', () => {
    const say = (body: object, session: string) => client.post(`/v1/instances/${id}/session/${session}/responses`, body)

    it('that the model is told are echoed', async () => {
      const { body } = await say(
        { model: plain, input: 'x', temperature: 0.3, max_output_tokens: 77, instructions: 'A-CANARY' },
        'told',
      )
      expect(body).toMatchObject({ temperature: 0.3, max_output_tokens: 77, instructions: 'A-CANARY' })
      expect(asked().body).toMatchObject({ temperature: 0.3, max_tokens: 77 })
      expect(asked().system).toContain('A-CANARY')
    })

    it('that it is not told have their neutral value', async () => {
      const { body } = await say(
        { model: seeing, input: 'x', temperature: 0.3, top_p: 0.4, reasoning: { effort: 'low' }, user: 'u' },
        'untold',
      )
      expect(body).toMatchObject({ temperature: 1, top_p: 1, reasoning: { effort: null } })
      expect(asked().body).not.toHaveProperty('temperature')
      expect(asked().body).not.toHaveProperty('top_p')
    })

    it('of tools: `none` hides them, `required` holds the agent to one', async () => {
      await say({ model: plain, input: 'x', tools: [weather], tool_choice: 'none' }, 'choice')
      expect(asked().tools).not.toContain('get_weather')
      const allowed = {
        type: 'allowed_tools',
        mode: 'auto',
        tools: [{ type: 'function', name: 'get_weather' }],
      }
      const other = { ...weather, name: 'other_x' }
      await say({ model: plain, input: 'x', tools: [weather, other], tool_choice: allowed }, 'choice')
      expect(asked().tools).toContain('get_weather')
      expect(asked().tools).not.toContain('other_x')
      const unmet = await say({ model: plain, input: 'x', tools: [weather], tool_choice: 'required' }, 'choice')
      expect(unmet).toMatchObject({ status: 502, body: { error: { message: expect.stringContaining('tool_choice') } } })
    })

    it('that limit the answer are told by its status', async () => {
      const { body } = await say({ model: plain, input: '[[fake:length]]', max_output_tokens: 16 }, 'length')
      expect(body).toMatchObject({ status: 'incomplete', incomplete_details: { reason: 'max_output_tokens' } })
      expect(faultsOfResponse(body)).toEqual([])
    })
  })

  describe('chat completions', () => {
    const { create } = { create: (body: object) => openai().chat.completions.create(body as never) as never }
    const messages = [{ role: 'user', content: 'hello chat' }]

    it('are answered, plain and streamed, and remember nothing', async () => {
      const whole = (await create({ model: 'openclaw', messages })) as OpenAI.ChatCompletion
      expect(whole.choices[0]?.message.content).toContain('turns=1 last="hello chat"')
      const stream = (await create({
        model: 'openclaw',
        messages,
        stream: true,
      })) as AsyncIterable<OpenAI.ChatCompletionChunk>
      let text = ''
      for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? ''
      expect(text).toContain('turns=1 last="hello chat"')
    })

    it('call a tool and take its result', async () => {
      const tools = [{ type: 'function', function: { ...weather, strict: undefined, type: undefined } }]
      const asks = [{ role: 'user', content: call }]
      const first = (await create({ model: 'openclaw', messages: asks, tools })) as OpenAI.ChatCompletion
      const { message, finish_reason } = present(first.choices[0])
      expect(finish_reason).toBe('tool_calls')
      const [made] = message.tool_calls ?? []
      expect(made).toMatchObject({ function: { name: 'get_weather', arguments: '{"city":"Rome"}' } })
      const told = [...asks, message, { role: 'tool', tool_call_id: present(made).id, content: 'sunny by chat' }]
      await create({ model: 'openclaw', messages: [...told, { role: 'user', content: 'so?' }], tools })
      expect(asked().last).toContain('sunny by chat')
    })

    it('through the AI SDK', async () => {
      const { text } = await generateText({ model: sdk().chat('openclaw'), prompt: 'hello ai chat' })
      expect(text).toContain('last="hello ai chat"')
    })

    it('leave no session behind', async () => {
      const gateway = present(await findGateway(id))
      const { endpoint } = gateway
      const signal = AbortSignal.timeout(60_000)
      const rpc = await connectGateway(endpoint, gateway.token, { signal, timeoutMs: 20_000 })
      const sessions = async () => {
        const { sessions: all } = (await rpc.call('sessions.list', { limit: 200 })) as { sessions: { key: string }[] }
        return all.map((session) => session.key)
      }
      await until('them to be gone', async () => !(await sessions()).some((one) => one.includes(':c-')), 40_000)
      expect(await sessions()).toContain('agent:main:main')
      rpc.close()
    })
  })

  it('speaks the format over a WebSocket', async () => {
    const ws = new ResponsesWS(new OpenAI({ baseURL: baseURL('socket'), apiKey: key }))
    const events: unknown[] = []
    const turn = () =>
      new Promise<OpenAI.Responses.Response>((resolve, reject) => {
        ws.on('event', (event) => {
          events.push(event)
          if (event.type === 'response.completed') resolve(event.response as OpenAI.Responses.Response)
        })
        ws.on('error', reject)
      })
    const first = turn()
    ws.send({ type: 'response.create', model: 'openclaw', input: 'my name is Ada' })
    const { id: previous } = await first
    expectWholeStream(events.splice(0) as never)
    const second = turn()
    ws.send({ type: 'response.create', model: 'openclaw', input: 'and now?', previous_response_id: previous })
    expect(JSON.stringify(await second)).toContain('turns=2')
    ws.close()
  })

  it('`openclaw` is the model that the agent was configured with', async () => {
    const instance = `/v1/instances/${id}`
    const configure = (openclaw_config: object | null) => client.patch(instance, { openclaw_config })
    expect((await configure({ 'agents.defaults.model.primary': `anthropic/${plain}` })).status).toBe(200)
    const models = (await client.get(`${instance}/models`)).body.data.map((model: { id: string }) => model.id)
    expect(models.slice(0, 2)).toEqual(['openclaw', plain])
    await openai('configured').responses.create({ model: 'openclaw', input: 'hello' })
    expect(asked().model).toBe(plain)
    expect((await configure(null)).status).toBe(200)
  })

  it('two turns of one session at once run one after the other', async () => {
    const { responses } = openai('at-once')
    const turn = (input: string) => responses.create({ model: plain, input })
    const first = turn('[[fake:chunk-delay=500]] the first')
    await until('its model to be asked', () => provider.requests.some(({ last }) => last.endsWith('the first')))
    const [one, two] = await Promise.all([first, turn('two')])
    expect(one.output_text).toContain('turns=1')
    expect(two.output_text).toContain('turns=2 last="two"')
  })

  it('every answer was held against the format', () => {
    expect(judged).toBeGreaterThan(20)
  })
})
