import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import type { StreamEvent } from '#api/responses/format/event-schemas.ts'
import { readRequest } from '#api/responses/format/request.ts'
import { cancelled, type Outcome, ResponseWriter } from '#api/responses/format/response-writer.ts'
import type { ToolEvent } from '#openclaw/gateway/run-events.ts'
import { type AgentEvent, readAnswer, readStream } from '#turns/gateway-answer.ts'
import { watchTurns } from '../../support/longest-turn.ts'
import { present } from '../../support/present.ts'
import { expectWholeStream, faultsOfResponse } from '../../support/response-schemas.ts'
import { delta, responseObject, sse, streamHead, wholeStream } from '../../support/stub-responses-gateway.ts'

const folder = join(import.meta.dirname, '../../support/recorded-streams')
/** Streams of OpenClaw 2026.9.6, byte for byte. The file's name says what was requested. */
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

/** All events that are written for the events of an agent. */
function write(agentEvents: readonly AgentEvent[], outcome: Outcome): StreamEvent[] {
  const response = new ResponseWriter({ id: 'resp_1', createdAt: 1, echo })
  const out = [...response.start()]
  for (const event of agentEvents)
    if (event.kind === 'text' || event.kind === 'call') out.push(...response.write(event))
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

describe('recorded streams of OpenClaw', () => {
  test.each(recorded)(
    '%s: gives the same events wherever its chunks end',
    async (_file, bytes) => {
      const whole = await read(bytes)
      for (let at = 1; at < bytes.length; at++) expect(await read(bytes, [at])).toSatisfy(hasSameEvents(whole))
      const everyByte = Array.from({ length: bytes.length }, (_, at) => at)
      expect(await read(bytes, everyByte)).toEqual(whole)
    },
    60_000,
  )

  test.each(recorded)('%s: gives a complete response', async (_file, bytes) => {
    const agentEvents = await read(bytes)
    const end = present(agentEvents.at(-1))
    expect(agentEvents.filter(({ kind }) => kind === 'end' || kind === 'failed')).toEqual([end])
    expectWholeStream(
      write(agentEvents, end.kind === 'end' ? { ...outcomes[end.status], usage: end.usage } : outcomes.failed),
    )
  })

  const of = async (name: string) => await read(readFileSync(join(folder, `${name}.sse`)))

  test('a text arrives in pieces, with its usage at the end', async () => {
    const agentEvents = await of('text')
    expect(textOf(agentEvents)).toContain('last="Grüße 🦞 and hello"')
    expect(agentEvents.length).toBeGreaterThan(5)
    expect(agentEvents.at(-1)).toMatchObject({
      kind: 'end',
      status: 'completed',
      usage: { output_tokens: expect.any(Number) },
    })
  })

  test('a tool call has no empty message before it', async () => {
    const agentEvents = await of('call')
    expect(agentEvents).toMatchObject([
      { kind: 'call', name: 'get_weather', arguments: '{"city":"Rome"}' },
      { kind: 'end' },
    ])
    const types = write(agentEvents, outcomes.completed).map(({ type }) => type.replace('response.', ''))
    expect(types).toEqual([
      ...['created', 'in_progress', 'output_item.added', 'function_call_arguments.delta'],
      ...['function_call_arguments.done', 'output_item.done', 'completed'],
    ])
  })

  test('several calls arrive one after the other', async () => {
    expect((await of('calls')).filter(({ kind }) => kind === 'call')).toMatchObject([
      { arguments: '{"city":"Rome"}' },
      { arguments: '{"city":"Oslo"}' },
    ])
  })

  test('an answer that reached max_output_tokens is incomplete', async () => {
    const agentEvents = await of('length')
    expect(agentEvents.at(-1)).toMatchObject({ kind: 'end', status: 'incomplete' })
    expect(write(agentEvents, outcomes.incomplete).at(-1)).toMatchObject({
      type: 'response.incomplete',
      response: { status: 'incomplete', incomplete_details: { reason: 'max_output_tokens' }, completed_at: null },
    })
  })

  test.each(['failed-provider', 'failed-tool-choice'])('%s: fails without a message item', async (name) => {
    const agentEvents = await of(name)
    expect(agentEvents).toMatchObject([
      { kind: 'failed', error: { code: expect.any(String), message: expect.any(String) } },
    ])
  })
})

const hasSameEvents = (whole: readonly AgentEvent[]) => (events: readonly AgentEvent[]) =>
  JSON.stringify(events) === JSON.stringify(whole)

describe('a stream that cannot be read to its end', () => {
  test('breaks off at any byte and is not taken for a complete one', async () => {
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
    ['invalid JSON', 'event: response.output_text.delta\ndata: {"oops\n\n'],
    ['a list', 'data: [1]\n\n'],
    ['a delta that is not a text', sse({ type: 'response.output_text.delta', delta: 5 })],
    ['a text that differs from its deltas', sse({ type: 'response.output_text.done', text: 'else' })],
    ['an end without a response', sse({ type: 'response.completed' })],
    [
      'a call without a name',
      sse({ type: 'response.output_item.done', item: { type: 'function_call', call_id: 'c' } }),
    ],
    [
      'a call with a malformed id',
      sse({
        type: 'response.output_item.done',
        item: { type: 'function_call', call_id: `c\n${'x'.repeat(99)}`, name: 'n', arguments: '{}' },
      }),
    ],
  ])('is unreadable at %s', async (_what, event) => {
    await expect(read(streamHead + delta('a') + event + delta('never'))).rejects.toThrow(/cannot be read/)
  })

  test('does not end at [DONE] without a terminal event', async () => {
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

  test('is not read for ever: not of texts, of many calls, or of large calls', async () => {
    const large = 'x'.repeat(1024 * 1024)
    expect(await endless(delta(large))).toBe(9)
    expect(await endless(called(large))).toBe(8)
    expect(await endless(called('{}'))).toBe(1001)
  })

  test('A21: is not read for ever when nothing in it counts', async () => {
    const piece = 'x'.repeat(1024 * 1024)
    expect(await endless(`: ${piece}\n\n`)).toBe(64)
    expect(await endless(sse({ type: 'response.unheard', piece }))).toBe(64)
    expect(await endless(`data: {"type":"x","values":[${'{},'.repeat(100_000)}{}]}\n\n`)).toBe(1)
  })

  test('is complete when only bytes after its end are broken', async () => {
    expect(textOf(await read(`${wholeStream}event: x\ndata: {"half`))).toBe('Grüße 🦞')
  })
})

describe('a stream with other content', () => {
  test('comments, other fields, other line ends and unknown events change nothing', async () => {
    const odd = '\n: keep-alive\n\nid: 7\nretry: 10\nevent: x\ndata: {"a":\ndata:1}\n\nevent\ndata\n\n'
    for (const lineEnd of ['\n', '\r\n', '\r']) {
      const stream = (odd + wholeStream).replaceAll('\n', lineEnd)
      const withoutEmpty = stream.replace(`event${lineEnd}data${lineEnd}${lineEnd}`, '')
      for (let at = 0; at <= 60; at++) expect(textOf(await read(withoutEmpty, [at]))).toBe('Grüße 🦞')
    }
  })

  test('a text without deltas is read once', async () => {
    const done = sse({ type: 'response.output_text.done', text: 'all of it' })
    const completed = sse({ type: 'response.completed', response: responseObject() })
    expect(textOf(await read(streamHead + done + completed))).toBe('all of it')
  })
})

test.each(recorded)('%s: tells the id of the turn', async (_file, bytes) => {
  const ids: string[] = []
  for await (const _batch of readStream(chunksOf(bytes, []), (id) => ids.push(id)));
  expect(ids).toEqual([expect.stringMatching(/^resp_[-0-9a-f]{36}$/)])
})

describe('an answer as JSON', () => {
  test('gives the same events as a stream', async () => {
    const call = { type: 'function_call', id: 'call_1', call_id: 'c1', name: 'f', arguments: '{}' }
    const { output } = responseObject()
    const agentEvents = await readAnswer(Buffer.from(JSON.stringify(responseObject({ output: [...output, call] }))))
    expect(agentEvents).toMatchObject([
      { kind: 'text', text: 'Grüße 🦞' },
      { kind: 'call', callId: 'c1', name: 'f', arguments: '{}' },
      { kind: 'end', status: 'completed', usage: { input_tokens: 1, output_tokens: 2, total_tokens: 3 } },
    ])
    expectWholeStream(write(agentEvents, outcomes.completed))
  })

  test('is refused with more than 1,000 calls', async () => {
    const call = { type: 'function_call', call_id: 'c1', name: 'f', arguments: '{}' }
    const answer = (calls: number) =>
      Buffer.from(JSON.stringify(responseObject({ output: Array.from({ length: calls }, () => call) })))
    expect(await readAnswer(answer(1000))).toHaveLength(1001)
    await expect(readAnswer(answer(1001))).rejects.toThrow(/too large/)
  })

  test('S9: of 8 MiB with millions of values is refused, and holds the event loop for a moment', async () => {
    const answer = Buffer.from(`{"output":[${'{},'.repeat(2_700_000)}{}]}`)
    const longestTurn = watchTurns()
    await expect(readAnswer(answer)).rejects.toMatchObject({ kind: 'gateway_unreachable', doNotRetry: true })
    expect(longestTurn()).toBeLessThan(100)
  })

  test.each(['<html>', '"text"', 'null', '{"id":', '{}', '{"output":[1]}'])('is unreadable as %s', async (text) => {
    await expect(readAnswer(Buffer.from(text))).rejects.toThrow(/cannot be read/)
  })
})

test('any output with any outcome gives a complete response', () => {
  const agentEvents = fc.oneof(
    fc.string({ unit: 'grapheme', minLength: 1, maxLength: 20 }).map((text): AgentEvent => ({ kind: 'text', text })),
    fc
      .record({ callId: fc.string({ minLength: 1, maxLength: 9 }), name: fc.string(), arguments: fc.string() })
      .map((call): AgentEvent => ({ kind: 'call', ...call })),
  )
  fc.assert(
    fc.property(
      fc.array(agentEvents, { maxLength: 30 }),
      fc.constantFrom(...Object.values(outcomes)),
      (events, outcome) => {
        const out = write(events, outcome)
        expectWholeStream(out)
        const last = present(out.at(-1))
        if (!('response' in last)) throw new Error('no response')
        const texts = last.response.output.flatMap((item) => (item.type === 'message' ? item.content : []))
        expect(texts.map(({ text }) => text).join('')).toBe(textOf(events))
        expect(last.response.status).toBe(outcome.status)
      },
    ),
    { numRuns: 500 },
  )
})

test('random chunks of random streams neither lose nor add text', async () => {
  const piece = fc.string({ unit: 'binary', minLength: 1, maxLength: 12 }).filter((text) => text.isWellFormed())
  await fc.assert(
    fc.asyncProperty(
      fc.array(piece, { maxLength: 12 }),
      fc.array(fc.nat(4000), { maxLength: 40 }),
      async (pieces, cuts) => {
        const end = sse({ type: 'response.completed', response: responseObject() })
        const bytes = Buffer.from(streamHead + pieces.map(delta).join('') + end)
        const agentEvents = await read(
          bytes,
          cuts.map((cut) => cut % bytes.length),
        )
        expect(agentEvents.slice(0, -1)).toEqual(pieces.map((text) => ({ kind: 'text', text })))
        expect(agentEvents.at(-1)).toMatchObject({ kind: 'end' })
      },
    ),
    { numRuns: 300 },
  )
})

test('the time for an event in many small chunks is proportional to its size', async () => {
  const letters = 1_000_000
  async function* byLetter() {
    const [head = '', tail = ''] = delta('|').split('|')
    yield Buffer.from(streamHead + head)
    for (let count = 0; count < letters; count++) yield Buffer.from('x')
    yield Buffer.from(tail + sse({ type: 'response.completed', response: responseObject() }))
  }
  const startedAt = performance.now()
  const agentEvents: AgentEvent[] = []
  for await (const batch of readStream(byLetter())) agentEvents.push(...batch)
  expect(textOf(agentEvents)).toHaveLength(letters)
  expect(performance.now() - startedAt).toBeLessThan(15_000)
})

describe('the events of tools', () => {
  const writer = () => new ResponseWriter({ id: 'resp_1', createdAt: 1, echo })
  const tool = (id: string, status: ToolEvent['status'], at = 0): ToolEvent => {
    return { kind: 'tool', id, name: 'exec', title: null, status, at }
  }
  const read = (events: { json(): string }[]) => events.map(({ json }) => JSON.parse(json()))

  test('are at most 1,000 in a response, also after another process', () => {
    const first = writer()
    const written = Array.from({ length: 300 }, (_, at) => [
      ...first.write(tool(`${at}`, 'in_progress')),
      ...first.write(tool(`${at}`, 'completed')),
    ]).flat()
    expect(written).toHaveLength(600)
    const second = writer()
    second.continueAfter(written.map(({ json }) => json()))
    const further = Array.from({ length: 500 }, (_, at) => second.write(tool(`${at}`, 'in_progress'))).flat()
    expect(further).toHaveLength(400)
    expect(read(further)[0]).toMatchObject({ sequence_number: 600 })
  })

  test('end only what has started, also in another process, which does not know how long it took', () => {
    const first = writer()
    expect(first.write(tool('a', 'completed'))).toEqual([])
    const started = first.write(tool('a', 'in_progress', 7999))
    expect(first.write(tool('a', 'in_progress'))).toEqual([])
    const second = writer()
    second.continueAfter(started.map(({ json }) => json()))
    expect(read(second.write(tool('a', 'failed', 9000)))).toEqual([
      {
        type: 'chowder:tool.ended',
        sequence_number: 1,
        tool: { id: 'a', name: 'exec', status: 'failed', started_at: 7 },
      },
    ])
    expect(second.write(tool('a', 'failed', 9000))).toEqual([])
  })
})
