import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import type { AgentEvent } from '#api/responses/format/agent-events.ts'
import type { StreamEvent } from '#api/responses/format/event-schemas.ts'
import { readAnswer, readStream } from '#api/responses/format/gateway-answer.ts'
import { readRequest } from '#api/responses/format/request.ts'
import { cancelled, type Outcome } from '#api/responses/format/response-object.ts'
import { ResponseWriter } from '#api/responses/format/response-writer.ts'
import { present } from '../support/present.ts'
import { expectWholeStream, faultsOfResponse } from '../support/response-schemas.ts'
import { delta, responseObject, sse, streamHead, wholeStream } from '../support/stub-responses-gateway.ts'

const folder = join(import.meta.dirname, '../support/recorded-streams')
/** Streams of OpenClaw 2026.9.6, byte for byte, by what was asked. */
const recorded = readdirSync(folder).map((file) => [file, readFileSync(join(folder, file))] as const)

async function* chunksOf(bytes: Buffer, cuts: readonly number[]) {
  const edges = [...new Set([0, ...cuts, bytes.length])].sort((a, b) => a - b)
  for (const [index, from] of edges.slice(0, -1).entries()) yield bytes.subarray(from, edges[index + 1])
}

async function read(bytes: Buffer | string, cuts: readonly number[] = []): Promise<AgentEvent[]> {
  const events: AgentEvent[] = []
  for await (const batch of readStream(chunksOf(Buffer.from(bytes), cuts))) events.push(...batch)
  return events
}

const { echo } = readRequest(
  { model: 'gpt-4o', input: 'hello' },
  { provider: 'openai', release: 'v1', model: 'gpt-4o' },
)
const outcomes = {
  completed: { status: 'completed', usage: null, error: null },
  incomplete: { status: 'incomplete', usage: null, error: null },
  failed: { status: 'failed', usage: null, error: { code: 'gateway_unreachable', message: 'it broke' } },
  cancelled,
} satisfies Record<string, Outcome>

/** All that goes out for what an agent did. */
function write(said: readonly AgentEvent[], outcome: Outcome): StreamEvent[] {
  const response = new ResponseWriter({ id: 'resp_1', createdAt: 1, echo })
  const out = [...response.start()]
  for (const event of said) if (event.kind === 'text' || event.kind === 'call') out.push(...response.write(event))
  const { events, response: ended } = response.end(outcome)
  expect(faultsOfResponse(ended)).toEqual([])
  out.push(...events)
  return out.map(({ type, json }) => {
    const event = JSON.parse(json()) as StreamEvent
    expect(event.type).toBe(type)
    return event
  })
}

const textOf = (events: readonly AgentEvent[]) =>
  events.map((event) => (event.kind === 'text' ? event.text : '')).join('')

describe('streams as OpenClaw really sends them', () => {
  test.each(recorded)(
    '%s: the same events wherever the chunks end',
    async (_file, bytes) => {
      const whole = await read(bytes)
      for (let at = 1; at < bytes.length; at++) expect(await read(bytes, [at])).toSatisfy(saysTheSame(whole))
      const everyByte = Array.from({ length: bytes.length }, (_, at) => at)
      expect(await read(bytes, everyByte)).toEqual(whole)
    },
    60_000,
  )

  test.each(recorded)('%s: is a whole response', async (_file, bytes) => {
    const said = await read(bytes)
    const end = present(said.at(-1))
    expect(said.filter(({ kind }) => kind === 'end' || kind === 'failed')).toEqual([end])
    expectWholeStream(write(said, end.kind === 'end' ? { ...outcomes[end.status], usage: end.usage } : outcomes.failed))
  })

  const of = async (name: string) => await read(readFileSync(join(folder, `${name}.sse`)))

  test('a text comes in pieces, with what it cost', async () => {
    const said = await of('text')
    expect(textOf(said)).toContain('last="Grüße 🦞 and hello"')
    expect(said.length).toBeGreaterThan(5)
    expect(said.at(-1)).toMatchObject({
      kind: 'end',
      status: 'completed',
      usage: { output_tokens: expect.any(Number) },
    })
  })

  test('a call of a tool has no empty message before it', async () => {
    const said = await of('call')
    expect(said).toMatchObject([{ kind: 'call', name: 'get_weather', arguments: '{"city":"Rome"}' }, { kind: 'end' }])
    const types = write(said, outcomes.completed).map(({ type }) => type.replace('response.', ''))
    expect(types).toEqual([
      ...['created', 'in_progress', 'output_item.added', 'function_call_arguments.delta'],
      ...['function_call_arguments.done', 'output_item.done', 'completed'],
    ])
  })

  test('several calls come one after the other', async () => {
    expect((await of('calls')).filter(({ kind }) => kind === 'call')).toMatchObject([
      { arguments: '{"city":"Rome"}' },
      { arguments: '{"city":"Oslo"}' },
    ])
  })

  test('an answer that was cut at its limit says so', async () => {
    const said = await of('length')
    expect(said.at(-1)).toMatchObject({ kind: 'end', status: 'incomplete' })
    expect(write(said, outcomes.incomplete).at(-1)).toMatchObject({
      type: 'response.incomplete',
      response: { status: 'incomplete', incomplete_details: { reason: 'max_output_tokens' }, completed_at: null },
    })
  })

  test.each(['failed-provider', 'failed-tool-choice'])('%s fails without a message', async (name) => {
    const said = await of(name)
    expect(said).toMatchObject([{ kind: 'failed', error: { code: expect.any(String), message: expect.any(String) } }])
  })
})

const saysTheSame = (whole: readonly AgentEvent[]) => (events: readonly AgentEvent[]) =>
  JSON.stringify(events) === JSON.stringify(whole)

describe('a stream that breaks off', () => {
  test('is told from one that ended, wherever it does', async () => {
    for (const [, bytes] of recorded) {
      const ends = bytes.lastIndexOf('\n\ndata: [DONE]') + 1
      for (let end = 0; end < ends; end += 97) {
        await expect(read(bytes.subarray(0, end))).rejects.toMatchObject({
          kind: 'gateway_unreachable',
          doNotRetry: true,
        })
      }
    }
  })

  test.each([
    ['JSON that is none', 'event: response.output_text.delta\ndata: {"oops\n\n'],
    ['a list', 'data: [1]\n\n'],
    ['a delta that is no text', sse({ type: 'response.output_text.delta', delta: 5 })],
    ['another text than was said', sse({ type: 'response.output_text.done', text: 'else' })],
    ['an end without a response', sse({ type: 'response.completed' })],
    [
      'a call without a name',
      sse({ type: 'response.output_item.done', item: { type: 'function_call', call_id: 'c' } }),
    ],
    [
      'a call with an id as of nobody',
      sse({
        type: 'response.output_item.done',
        item: { type: 'function_call', call_id: `c\n${'x'.repeat(99)}`, name: 'n', arguments: '{}' },
      }),
    ],
  ])('at %s cannot be read', async (_what, event) => {
    await expect(read(streamHead + delta('a') + event + delta('never'))).rejects.toThrow(/cannot be read/)
  })

  test('never ends at a [DONE] without an end before it', async () => {
    await expect(read(`${streamHead}data: [DONE]\n\n`)).rejects.toThrow(/before it was complete/)
  })

  const called = (args: string) =>
    sse({
      type: 'response.output_item.done',
      item: { type: 'function_call', call_id: 'c', name: 'n', arguments: args },
    })
  const endless = async (event: string) => {
    let taken = 0
    async function* events() {
      for (;;) {
        taken += 1
        yield Buffer.from(event)
      }
    }
    const reading = async () => {
      for await (const _batch of readStream(events()));
    }
    await expect(reading()).rejects.toMatchObject({
      kind: 'gateway_unreachable',
      message: expect.stringContaining('too large'),
    })
    return taken
  }

  test('that is endless is left, be it of texts, of many calls or of large ones', async () => {
    const large = 'x'.repeat(8 * 1024 * 1024)
    expect(await endless(delta(large))).toBe(9)
    expect(await endless(called(large))).toBe(8)
    expect(await endless(called('{}'))).toBe(1001)
  })

  test('after its end is whole', async () => {
    expect(textOf(await read(`${wholeStream}event: x\ndata: {"half`))).toBe('Grüße 🦞')
  })
})

describe('what a gateway’s stream may hold besides', () => {
  test('lines of other kinds, line ends of other kinds, and unknown events say nothing', async () => {
    const odd = '\n: keep-alive\n\nid: 7\nretry: 10\nevent: x\ndata: {"a":\ndata:1}\n\nevent\ndata\n\n'
    for (const lineEnd of ['\n', '\r\n', '\r']) {
      const stream = (odd + wholeStream).replaceAll('\n', lineEnd)
      const withoutEmpty = stream.replace(`event${lineEnd}data${lineEnd}${lineEnd}`, '')
      for (let at = 0; at <= 60; at++) expect(textOf(await read(withoutEmpty, [at]))).toBe('Grüße 🦞')
    }
  })

  test('a text that was never sent in pieces is said once', async () => {
    const done = sse({ type: 'response.output_text.done', text: 'all of it' })
    const completed = sse({ type: 'response.completed', response: responseObject() })
    expect(textOf(await read(streamHead + done + completed))).toBe('all of it')
  })
})

describe('a plain answer', () => {
  test('says the same as a stream', () => {
    const call = { type: 'function_call', id: 'call_1', call_id: 'c1', name: 'f', arguments: '{}' }
    const { output } = responseObject()
    const said = readAnswer(Buffer.from(JSON.stringify(responseObject({ output: [...output, call] }))))
    expect(said).toMatchObject([
      { kind: 'text', text: 'Grüße 🦞' },
      { kind: 'call', callId: 'c1', name: 'f', arguments: '{}' },
      { kind: 'end', status: 'completed', usage: { input_tokens: 1, output_tokens: 2, total_tokens: 3 } },
    ])
    expectWholeStream(write(said, outcomes.completed))
  })

  test('of more calls than anybody makes is refused', () => {
    const call = { type: 'function_call', call_id: 'c1', name: 'f', arguments: '{}' }
    const answer = (calls: number) =>
      Buffer.from(JSON.stringify(responseObject({ output: Array.from({ length: calls }, () => call) })))
    expect(readAnswer(answer(1000))).toHaveLength(1001)
    expect(() => readAnswer(answer(1001))).toThrow(/too large/)
  })

  test.each(['<html>', '"text"', 'null', '{"id":', '{}', '{"output":[1]}'])('that is %s cannot be read', (text) => {
    expect(() => readAnswer(Buffer.from(text))).toThrow(/cannot be read/)
  })
})

test('whatever an agent does, and however its turn ends, is a whole response', () => {
  const said = fc.oneof(
    fc.string({ unit: 'grapheme', minLength: 1, maxLength: 20 }).map((text): AgentEvent => ({ kind: 'text', text })),
    fc
      .record({ callId: fc.string({ minLength: 1, maxLength: 9 }), name: fc.string(), arguments: fc.string() })
      .map((call): AgentEvent => ({ kind: 'call', ...call })),
  )
  fc.assert(
    fc.property(fc.array(said, { maxLength: 30 }), fc.constantFrom(...Object.values(outcomes)), (events, outcome) => {
      const out = write(events, outcome)
      expectWholeStream(out)
      const last = present(out.at(-1))
      if (!('response' in last)) throw new Error('no response')
      const texts = last.response.output.flatMap((item) => (item.type === 'message' ? item.content : []))
      expect(texts.map(({ text }) => text).join('')).toBe(textOf(events))
      expect(last.response.status).toBe(outcome.status)
    }),
    { numRuns: 500 },
  )
})

test('random cuts of random streams lose and invent nothing', async () => {
  const piece = fc.string({ unit: 'binary', minLength: 1, maxLength: 12 }).filter((text) => text.isWellFormed())
  await fc.assert(
    fc.asyncProperty(
      fc.array(piece, { maxLength: 12 }),
      fc.array(fc.nat(4000), { maxLength: 40 }),
      async (pieces, cuts) => {
        const end = sse({ type: 'response.completed', response: responseObject() })
        const bytes = Buffer.from(streamHead + pieces.map(delta).join('') + end)
        const said = await read(
          bytes,
          cuts.map((cut) => cut % bytes.length),
        )
        expect(said.slice(0, -1)).toEqual(pieces.map((text) => ({ kind: 'text', text })))
        expect(said.at(-1)).toMatchObject({ kind: 'end' })
      },
    ),
    { numRuns: 300 },
  )
})

test('many tiny chunks of one event cost time in proportion to its size', async () => {
  const letters = 1_000_000
  async function* byLetter() {
    const [head = '', tail = ''] = delta('|').split('|')
    yield Buffer.from(streamHead + head)
    for (let count = 0; count < letters; count++) yield Buffer.from('x')
    yield Buffer.from(tail + sse({ type: 'response.completed', response: responseObject() }))
  }
  const startedAt = performance.now()
  const said: AgentEvent[] = []
  for await (const batch of readStream(byLetter())) said.push(...batch)
  expect(textOf(said)).toHaveLength(letters)
  expect(performance.now() - startedAt).toBeLessThan(15_000)
})
