import { setTimeout as sleep } from 'node:timers/promises'
import OpenAI from 'openai'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import type { StreamEvent } from '#api/responses/format/event-schemas.ts'
import { startAgent, type TestAgent } from '../support/agent.ts'
import { waitForStatus } from '../support/api-client.ts'
import { findGateway } from '../support/chowder-process.ts'
import { present } from '../support/present.ts'
import { expectWholeStream, faultsOfResponse } from '../support/response-schemas.ts'
import { until } from '../support/until.ts'

const png = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='
/** A model that OpenClaw shows images. */
const seeing = 'claude-opus-5'
const model = 'openclaw'
/** Twenty words that take some seconds. */
const slow = '[[fake:words=20]] [[fake:chunk-delay=300]]'
const words = (from: number, to: number) =>
  Array.from({ length: to - from + 1 }, (_, index) => `word${from + index}`).join(' ')

describe('background turns of a real agent', () => {
  let agent: TestAgent
  let openai: OpenAI
  let sessions = 0
  beforeAll(async () => {
    agent = await startAgent()
  })
  afterAll(() => agent?.close())
  beforeEach(() => {
    agent.provider.requests.length = 0
    // A model gets a failed message together with the next one of its session.
    openai = clientOf(`session-${sessions++}`)
  })

  const clientOf = (session: string) =>
    new OpenAI({
      baseURL: `${agent.chowder.url}/v1/instances/${agent.id}/session/${session}`,
      apiKey: agent.key,
      maxRetries: 0,
    })
  /** Responses are read below the instance. */
  const reader = () =>
    new OpenAI({ baseURL: `${agent.chowder.url}/v1/instances/${agent.id}`, apiKey: agent.key, maxRetries: 0 })
  const ended = (id: string, timeoutMs = 120_000) =>
    until(
      'the response to end',
      async () => {
        const response = await reader().responses.retrieve(id)
        return response.status !== 'queued' && response.status !== 'in_progress' && response
      },
      timeoutMs,
    )
  const isAsked = (input: string) =>
    until('the model to be asked', () => agent.provider.requests.some(({ last }) => last.startsWith(input)))
  const asked = (input: string) => agent.provider.requests.filter(({ last }) => last.startsWith(input)).length

  it('is answered at once, polled, and has the answer and the tokens of a turn that is waited for', async () => {
    const begun = performance.now()
    const queued = await openai.responses.create({ model, input: `slowly ${slow}`, background: true })
    expect(performance.now() - begun).toBeLessThan(2000)
    expect(queued).toMatchObject({ status: 'queued', background: true, output: [] })
    await isAsked('slowly')
    expect((await reader().responses.retrieve(queued.id)).status).toBe('in_progress')
    const response = await ended(queued.id)
    const { body } = await agent.client.get(`/v1/instances/${agent.id}/responses/${queued.id}`)
    expect(faultsOfResponse(body)).toEqual([])
    expect(response).toMatchObject({ status: 'completed', output_text: words(1, 20), background: true })
    const history = await agent.client.get(`/v1/instances/${agent.id}/events?type=response.completed`)
    expect(history.body.map(({ subject }: { subject: string }) => subject)).toContain(queued.id)
    const waitedFor = await clientOf('other').responses.create({ model, input: `slowly ${slow}` })
    expect(response.usage?.total_tokens).toBeGreaterThan(1000)
    expect(Math.abs((response.usage?.total_tokens ?? 0) - (waitedFor.usage?.total_tokens ?? 0))).toBeLessThan(200)
    expect(asked('slowly')).toBe(2)
  })

  it('continues with previous_response_id, with instructions, another model and an image', async () => {
    const one = await openai.responses.create({ model, input: 'remember seven', background: true })
    await ended(one.id)
    const two = await openai.responses.create({
      model: seeing,
      previous_response_id: one.id,
      instructions: 'Answer as a pirate.',
      input: [
        {
          type: 'message',
          role: 'user',
          content: [
            { type: 'input_text', text: 'look at it' },
            { type: 'input_image', image_url: `data:image/png;base64,${png}`, detail: 'auto' },
          ],
        },
      ],
      background: true,
    })
    expect(await ended(two.id)).toMatchObject({ status: 'completed', previous_response_id: one.id })
    const request = present(agent.provider.requests.at(-1))
    expect(request.last).toContain('look at it')
    expect(JSON.stringify(request.body)).toContain(png)
    expect(request.system).toContain('Answer as a pirate.')
    expect(request.model).toBe(seeing)
    const next = await openai.responses.create({ model, input: 'and now', previous_response_id: two.id })
    expect(next.status).toBe('completed')
  })

  it('streams, and streams on from the middle with another client', async () => {
    const stream = await openai.responses.create({ model, input: `stream ${slow}`, background: true, stream: true })
    let id = ''
    let last = -1
    let text = ''
    for await (const event of stream) {
      if (event.type === 'response.created') id = event.response.id
      expect(event.sequence_number).toBe(last + 1)
      last = event.sequence_number
      if (event.type === 'response.output_text.delta') text += event.delta
      if (text.length > 20) break // which closes the connection
    }
    const rest = await reader().responses.retrieve(id, { stream: true, starting_after: last })
    let final: OpenAI.Responses.Response | undefined
    for await (const event of rest) {
      expect(event.sequence_number).toBe(last + 1)
      last = event.sequence_number
      if (event.type === 'response.output_text.delta') text += event.delta
      if (event.type === 'response.completed') final = event.response
    }
    expect(text).toBe(words(1, 20))
    expect(final).toMatchObject({ id, status: 'completed' })
    expect(await ended(id)).toMatchObject({ status: 'completed', output_text: text })
    const again = await reader().responses.retrieve(id, { stream: true, starting_after: last - 1 })
    const types: string[] = []
    for await (const { type } of again) types.push(type)
    expect(types).toEqual(['response.completed'])
  })

  it('has the text of all messages of a turn with tools', async () => {
    const input = 'work [[fake:tool=exec {"command":"echo made > made.txt"}]] [[fake:say=done]]'
    const { id } = await openai.responses.create({ model, input, background: true })
    expect(await ended(id)).toMatchObject({ status: 'completed', output_text: 'done' })
  })

  it('completes with forty others, whose agent shows them as running after their ends', async () => {
    const turns = await Promise.all(
      Array.from({ length: 40 }, (_, index) =>
        clientOf(`one-of-many-${index}`).responses.create({ model, input: `many ${index}`, background: true }),
      ),
    )
    // Forty that poll at once would meet the limit of requests a minute on a slow machine.
    const responses: OpenAI.Responses.Response[] = []
    for (const { id } of turns) responses.push(await ended(id))
    expect(responses.map(({ status }) => status)).toEqual(turns.map(() => 'completed'))
    expect(asked('many')).toBe(turns.length)
  })

  it.each([false, true])('tells of its own tools when it is asked to, with background: %s', async (background) => {
    const session = clientOf(`tools-${background}`)
    const tool = (command: string) => `[[fake:tool=exec ${JSON.stringify({ command, yieldMs: 60_000 })}]]`
    const input = `use ${tool('sleep 1')} [[fake:say=done]]`
    const body = { model, input, background, stream: true } as const
    const asking = { ...body, include: ['chowder.tools'] } as unknown as typeof body
    const read = async (stream: AsyncIterable<OpenAI.Responses.ResponseStreamEvent>) => {
      const events: StreamEvent[] = []
      for await (const event of stream) events.push(event as unknown as StreamEvent)
      return events
    }
    const events = await read(await session.responses.create(asking))
    expectWholeStream(events)
    const told = events.flatMap((event) => ('tool' in event ? [event] : []))
    expect(told.map(({ type }) => type)).toEqual(['chowder:tool.started', 'chowder:tool.ended'])
    const [started, ended] = told.map(({ tool }) => tool)
    expect(started).toMatchObject({ name: 'exec', title: expect.stringMatching(/exec/i), status: 'in_progress' })
    expect(Math.abs(Date.now() / 1000 - (started?.started_at ?? 0))).toBeLessThan(120)
    expect(ended).toMatchObject({ ...started, status: 'completed', duration_ms: expect.any(Number) })
    expect(ended?.duration_ms).toBeGreaterThan(900)
    const first = events[0]
    const id = first && 'response' in first ? first.response.id : ''
    expect(await reader().responses.retrieve(id)).toMatchObject({ status: 'completed', output_text: 'done' })
    if (background) expect(await read(await reader().responses.retrieve(id, { stream: true }))).toEqual(events)
    const untold = await read(await session.responses.create({ ...body, input: `again ${tool('true')}` }))
    expect(untold.filter((event) => 'tool' in event)).toEqual([])
  })

  it('does not tell of a tool of the client', async () => {
    const weather = { type: 'function', name: 'get_weather', parameters: {}, strict: null } as const
    const body = { model, input: '[[fake:tool=get_weather {}]]', tools: [weather], include: ['chowder.tools'] }
    const stream = await openai.responses.create({ ...body, stream: true } as never)
    const types: string[] = []
    for await (const { type } of stream as unknown as AsyncIterable<StreamEvent>) types.push(type)
    expect(types).toContain('response.function_call_arguments.done')
    expect(types.filter((type) => type.startsWith('chowder'))).toEqual([])
  })

  it('is cancelled while it runs, and while it waits for an earlier one', async () => {
    const running = await openai.responses.create({ model, input: 'long [[fake:delay=30000]]', background: true })
    const waiting = await openai.responses.create({ model, input: 'later', background: true })
    await isAsked('long')
    expect(await reader().responses.cancel(waiting.id)).toMatchObject({ status: 'cancelled' })
    expect(await reader().responses.cancel(running.id)).toMatchObject({ status: 'cancelled' })
    await until('the model call to be cut', () =>
      agent.provider.requests.some(({ last, cut }) => last.startsWith('long') && cut),
    )
    expect(await ended(running.id)).toMatchObject({ status: 'cancelled' })
    expect(asked('later')).toBe(0)
  })

  it.each([
    ['refuses it', 'status=413', 'provider_request_too_large'],
    ['cuts its answer', 'drop', 'provider_error'],
    ['does not answer', 'hang-up', 'provider_error'],
  ])('is failed with the reason when the provider %s', async (_, fault, code) => {
    const { id } = await clientOf(fault).responses.create({ model, input: `x [[fake:${fault}]]`, background: true })
    expect(await ended(id)).toMatchObject({ status: 'failed', error: { code } })
  })

  it.each([
    ['tools', { tools: [{ type: 'function', name: 'f', parameters: {}, strict: false }] }],
    ['tool_choice', { tool_choice: 'auto' }],
    ['max_output_tokens', { max_output_tokens: 100 }],
    ['temperature', { temperature: 1 }],
    ['top_p', { top_p: 1 }],
    ['store', { store: false }],
    [
      'input',
      {
        input: [
          { role: 'user', content: 'a' },
          { role: 'user', content: 'b' },
        ],
      },
    ],
  ])('refuses %s, which it would drop', async (param, fields) => {
    const body = { model, input: 'hello', background: true, ...fields } as OpenAI.Responses.ResponseCreateParams
    const error = await openai.responses.create(body).catch((cause: unknown) => cause)
    expect(error).toMatchObject({ status: 400, param })
  })

  describe('with an answer in a format', () => {
    const valid = '{"city":"Rome","people":3}'
    const wrong = '{"city":"Rome","people":"three"}'
    const schema = {
      type: 'object',
      properties: { city: { type: 'string' }, people: { type: 'integer' } },
      required: ['city', 'people'],
      additionalProperties: false,
    }
    const text = { format: { type: 'json_schema' as const, name: 'place', schema } }
    const say = (input: string, over: object = {}) =>
      openai.responses.create({ model, input, text, background: true, ...over })
    const corrections = () => agent.provider.requests.filter(({ last }) => last.startsWith('Your answer was not'))
    /** The events of a response from its begin on. */
    async function eventsOf(id: string) {
      const events: OpenAI.Responses.ResponseStreamEvent[] = []
      for await (const event of await reader().responses.retrieve(id, { stream: true })) events.push(event)
      expect(events.map(({ sequence_number }) => sequence_number)).toEqual(events.map((_, index) => index))
      return events
    }
    const deltasOf = (events: OpenAI.Responses.ResponseStreamEvent[]) =>
      events.flatMap((event) => (event.type === 'response.output_text.delta' ? [event.delta] : []))

    it('has the JSON of it alone when that is valid at once', async () => {
      const { id } = await say(`place [[fake:say=Here:\n\n\`\`\`json\n${valid}\n\`\`\`]]`, {
        instructions: 'As a pirate.',
      })
      const response = await ended(id)
      expect(response).toMatchObject({ status: 'completed', output_text: valid, text })
      expect(faultsOfResponse((await agent.client.get(`/v1/instances/${agent.id}/responses/${id}`)).body)).toEqual([])
      const request = present(agent.provider.requests.at(-1))
      expect(request.system).toContain('As a pirate.')
      expect(request.system).toContain('valid against this JSON Schema')
      expect(deltasOf(await eventsOf(id))).toEqual([valid])
      expect(corrections()).toEqual([])
    })

    it('is an object with json_object', async () => {
      const object = { text: { format: { type: 'json_object' } } }
      const { id } = await say('object [[fake:say={"a":1}]]', object)
      expect(await ended(id)).toMatchObject({ status: 'completed', output_text: '{"a":1}' })
    })

    it('is corrected in its session, with the tokens of both answers, and shows the corrected one alone', async () => {
      const image = { type: 'input_image', image_url: `data:image/png;base64,${png}`, detail: 'auto' }
      const input = `first ${slow} [[fake:say=${wrong}]] [[fake:next-say=${valid}]]`
      const content = [{ type: 'input_text', text: input }, image]
      const { id } = await say('', { model: seeing, input: [{ role: 'user', content }] })
      const response = await ended(id)
      expect(response).toMatchObject({ status: 'completed', output_text: valid })
      const [correction, ...more] = corrections()
      expect(more).toEqual([])
      expect(correction).toMatchObject({ last: expect.stringContaining('answer/people must be integer'), turns: 2 })
      expect(correction?.system).toContain('valid against this JSON Schema')
      expect(response.usage?.output_tokens).toBe(wrong.length / 4 + Math.ceil(valid.length / 4))
      expect(deltasOf(await eventsOf(id))).toEqual([valid])
      const { body } = await agent.client.get(`/v1/instances/${agent.id}/responses/${id}`)
      expect(faultsOfResponse(body)).toEqual([])
      const next = await openai.responses.create({ model, input: 'and now', previous_response_id: id })
      expect(next.status).toBe('completed')
    })

    it('is failed when it is wrong twice, and shows no text', async () => {
      const { id } = await say(`first [[fake:say=${wrong}]] [[fake:next-say=${wrong}]]`)
      expect(await ended(id)).toMatchObject({ status: 'failed', error: { code: 'invalid_output' }, output: [] })
      expect(corrections()).toHaveLength(1)
      const events = await eventsOf(id)
      expect(deltasOf(events)).toEqual([])
      expect(events.at(-1)?.type).toBe('response.failed')
    })

    it('is cancelled while it is corrected, which ends the correction', async () => {
      const { id } = await say(`first [[fake:say=${wrong}]] [[fake:next-delay=60000]]`)
      await until('the correction', () => corrections().length === 1)
      await reader().responses.cancel(id)
      await until('the model call to be cut', () => corrections()[0]?.cut)
      expect(await ended(id)).toMatchObject({ status: 'cancelled' })
    })

    // The tool runs without the relay, which is gone meanwhile.
    it.each([
      ['first answer', '', 'first'],
      ['correction', 'next-', 'Your answer was not'],
    ])('is corrected once when Chowder is killed during the %s', async (_, prefix, killedIn) => {
      const tool = `[[fake:${prefix}tool=exec {"command":"sleep 30","yieldMs":60000}]]`
      const { id } = await say(`first ${tool} [[fake:say=${wrong}]] [[fake:next-say=${valid}]]`)
      await isAsked(killedIn)
      await sleep(3000) // the call of the tool has arrived then, and the tool runs
      await agent.chowder.kill('SIGKILL')
      await agent.startChowder()
      expect((await reader().responses.retrieve(id)).status).toBe('in_progress')
      expect(await ended(id)).toMatchObject({ status: 'completed', output_text: valid })
      expect(asked('first') + corrections().length).toBe(3) // the killed one before its tool and after it
      expect(asked(killedIn)).toBe(2)
      expect(deltasOf(await eventsOf(id))).toEqual([valid])
    })

    it.each([
      ['fail', { status: 'failed', error: { code: 'turn_interrupted' } }],
      ['resume', { status: 'completed', output_text: valid }],
    ] as const)(
      'keeps to on_interrupted: %s when Chowder and the gateway die in the correction',
      async (on_interrupted, end) => {
        const input = `first [[fake:say=${wrong}]] [[fake:next-say=${valid}]] [[fake:next-delay=15000]]`
        const { id } = await say(input, { on_interrupted })
        await until('the correction', () => corrections().length === 1)
        const { pid } = present(await findGateway(agent.id))
        await agent.chowder.kill('SIGKILL')
        process.kill(pid, 'SIGKILL')
        await agent.startChowder()
        expect(await ended(id, 180_000)).toMatchObject(end)
        expect(asked('first')).toBe(1)
        if (on_interrupted === 'fail') expect(corrections()).toHaveLength(1)
      },
    )

    it('is a 400 with a schema that is not valid', async () => {
      const format = { type: 'json_schema', name: 'place', schema: { type: 'objekt' } }
      const error = await say('hello', { text: { format } }).catch((cause: unknown) => cause)
      expect(error).toMatchObject({ status: 400, param: 'text.format.schema' })
    })
  })

  // Its relay is gone meanwhile, so a model call of the agent would fail, and be made again by OpenClaw.
  it.each(['SIGKILL', 'SIGTERM'] as const)(
    'goes on after a %s of Chowder, and its answer is found afterwards',
    async (signal) => {
      const input = `${signal} [[fake:tool=exec {"command":"sleep 30","yieldMs":60000}]] [[fake:words=20]]`
      const session = clientOf(signal)
      const stream = await session.responses.create({ model, input, background: true, stream: true })
      const { value: created } = await stream[Symbol.asyncIterator]().next()
      const { id } = (created as OpenAI.Responses.ResponseCreatedEvent).response
      await isAsked(signal)
      const next = await session.responses.create({ model, input: `after ${signal}`, background: true })
      await sleep(3000) // the call of the tool has arrived then, and the tool runs
      await agent.chowder.kill(signal)
      await agent.startChowder()
      expect((await reader().responses.retrieve(id)).status).toBe('in_progress')
      expect(await ended(id)).toMatchObject({ status: 'completed', output_text: words(1, 20) })
      expect(await ended(next.id)).toMatchObject({ status: 'completed' })
      expect(asked(signal)).toBe(2) // before its tool and after it
      let number = 0
      let text = ''
      for await (const event of await reader().responses.retrieve(id, { stream: true })) {
        expect(event.sequence_number).toBe(number++)
        if (event.type === 'response.output_text.delta') text += event.delta
      }
      expect(text).toBe(words(1, 20))
    },
  )

  it('goes on when Chowder is killed while the model answers: its agent asks again once Chowder runs', async () => {
    const session = clientOf('cut')
    const input = 'cut [[fake:words=60]] [[fake:chunk-delay=500]]'
    const { id } = await session.responses.create({ model, input, background: true })
    await isAsked('cut')
    await agent.chowder.kill('SIGKILL')
    await sleep(5000) // the agent asks again within 2 s, and waits
    await agent.startChowder()
    const response = await ended(id)
    expect(response).toMatchObject({ status: 'completed', error: null })
    expect(response.output_text.endsWith(words(1, 60))).toBe(true)
  })

  it('is failed when its gateway dies, and nothing runs again', async () => {
    const { id } = await openai.responses.create({ model, input: 'dead [[fake:delay=60000]]', background: true })
    await isAsked('dead')
    process.kill(present(await findGateway(agent.id)).pid, 'SIGKILL')
    expect(await ended(id)).toMatchObject({ status: 'failed', error: { code: 'turn_interrupted' } })
    await waitForStatus(agent.client, agent.id, 'running')
    expect((await clientOf('new').responses.create({ model, input: 'and now' })).status).toBe('completed')
    expect(asked('dead')).toBe(1)
  })

  it('goes on with on_interrupted: resume when its gateway dies, and when Chowder dies as well', async () => {
    const input = `resumed [[fake:words=5]] [[fake:delay=15000]]`
    const body = { model, input, background: true, on_interrupted: 'resume' } as const
    const { id } = await openai.responses.create(body)
    const failing = await clientOf('failing').responses.create({
      model,
      input: 'fails [[fake:delay=60000]]',
      background: true,
    })
    await isAsked('resumed')
    await isAsked('fails')
    const { pid } = present(await findGateway(agent.id))
    await agent.chowder.kill('SIGKILL')
    process.kill(pid, 'SIGKILL')
    await agent.startChowder()
    expect(await ended(id, 180_000)).toMatchObject({ status: 'completed', output_text: words(1, 5) })
    expect(await ended(failing.id)).toMatchObject({ status: 'failed', error: { code: 'turn_interrupted' } })
    expect(asked('fails')).toBe(1)
  })

  it('is failed when its instance is stopped', async () => {
    const { id } = await openai.responses.create({ model, input: 'stopped [[fake:delay=60000]]', background: true })
    await isAsked('stopped')
    await agent.client.post(`/v1/instances/${agent.id}/stop`)
    expect(await ended(id)).toMatchObject({ status: 'failed', error: { code: 'instance_stopping' } })
  })
})
