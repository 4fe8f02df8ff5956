import { describe, expect, test } from 'vitest'
import { AppError } from '../../src/platform/errors.ts'
import { relayEvents } from '../../src/responses/relay.ts'
import { EventCutter } from '../../src/responses/server-sent-events.ts'
import { delta, responseObject, sse, streamHead, wholeStream } from '../support/stub-responses-gateway.ts'

async function* chunksOf(bytes: Buffer, cuts: number[], failure?: Error) {
  const edges = [...new Set([0, ...cuts, bytes.length])].sort((a, b) => a - b)
  for (const [index, from] of edges.slice(0, -1).entries()) yield bytes.subarray(from, edges[index + 1])
  if (failure) throw failure
}

async function relay(text: string | Buffer, cuts: number[] = [], failure?: Error) {
  const outcomes: Record<string, unknown>[] = []
  const pieces: Buffer[] = []
  const broken: AppError[] = []
  const options = {
    model: 'gpt-4o',
    onChunk: () => {},
    onOutcome: (response: Record<string, unknown>) => outcomes.push(response),
    onBroken: (reason: AppError) => broken.push(reason),
    explain: (cause: unknown) => new AppError('gateway_unreachable', `explained: ${(cause as Error).message}`),
  }
  for await (const piece of relayEvents(chunksOf(Buffer.from(text), cuts, failure), options)) pieces.push(piece)
  return { text: Buffer.concat(pieces).toString(), pieces, outcomes, broken }
}

const lastEvent = (text: string) => {
  const last = text.trimEnd().split('\n\n').at(-1) ?? ''
  const [name, data] = last.split('\n')
  return { name, data: JSON.parse(data?.replace(/^data: /, '') ?? 'null') }
}

/** Small, seeded: the same splits in every run. */
function* numbers(seed: number): Generator<number, never> {
  let state = seed
  while (true) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    yield state / 2 ** 32
  }
}

const passedOn = wholeStream.replaceAll('"model":"openclaw"', '"model":"gpt-4o"')

describe('the stream that the caller gets', () => {
  test('names the model that was asked for, and is otherwise the gateway’s to the byte', async () => {
    expect(passedOn).not.toBe(wholeStream)
    expect((await relay(wholeStream)).text).toBe(passedOn)
  })

  test('is the same wherever the chunks end, also inside a character or a line end', async () => {
    const random = numbers(7)
    for (const lineEnd of ['\n', '\r\n', '\r']) {
      const stream = Buffer.from(wholeStream.replaceAll('\n', lineEnd))
      const expected = passedOn.replaceAll('\n', lineEnd)
      for (let round = 0; round < 100; round++) {
        const cuts = Array.from({ length: round }, () => Math.floor(random.next().value * stream.length))
        expect((await relay(stream, cuts)).text).toBe(expected)
      }
    }
    const everyByte = Array.from({ length: Buffer.byteLength(wholeStream) }, (_, at) => at)
    expect((await relay(wholeStream, everyByte)).text).toBe(passedOn)
  })

  test('keeps comments, ids, retries, blank lines and unknown events as they came', async () => {
    const odd =
      '\n: keep-alive\n\nid: 7\nretry: 10\nevent: x\ndata: a\ndata:b\n\nevent\ndata\n\n\r\rdata: {"type":"y"}\r\n\r\n'
    for (let at = 0; at <= odd.length; at++) {
      const { text } = await relay(odd + wholeStream, [at])
      expect(text).toBe(odd + passedOn)
    }
  })

  test('keeps the id of an event whose model it changes', async () => {
    const created = sse({ type: 'response.created', response: responseObject() })
    const { text } = await relay(`id: 5\n${created}`)
    expect(text).toMatch(/^id: 5\nevent: response.created\ndata: \{.*"model":"gpt-4o"/)
  })

  test('passes an event on as soon as it is whole, without waiting for the next', async () => {
    const pieces = [streamHead, delta('a'), delta('b'), sse({ type: 'response.completed', response: responseObject() })]
    const cuts = pieces.map((_, index) => Buffer.byteLength(pieces.slice(0, index + 1).join('')))
    expect((await relay(pieces.join(''), cuts)).pieces).toHaveLength(4)
  })

  test('knows an event without a name by the type in its data', async () => {
    const nameless = wholeStream.replaceAll(/event: .*\n/g, '')
    expect((await relay(nameless)).text).toBe(passedOn.replaceAll(/event: .*\n/g, ''))
  })

  test('reports how the turn ended', async () => {
    const failed = responseObject({ status: 'failed', error: { code: 'authentication_error', message: '401' } })
    const { outcomes, text } = await relay(streamHead + sse({ type: 'response.failed', response: failed }))
    expect(outcomes).toEqual([failed])
    expect(lastEvent(text)).toMatchObject({ name: 'event: response.failed', data: { response: { model: 'gpt-4o' } } })
  })
})

describe('a stream without a terminal event', () => {
  test.each(['response.completed', 'response.incomplete', 'response.failed'])('ends cleanly after %s', async (type) => {
    const { text, broken } = await relay(
      streamHead + sse({ type, response: responseObject() }),
      [],
      new Error('late reset'),
    )
    expect(broken).toEqual([])
    expect(lastEvent(text).name).toBe(`event: ${type}`)
  })

  test('ends with an error event wherever the gateway dies', async () => {
    const bytes = Buffer.from(wholeStream)
    const completedEnds = bytes.indexOf('data: [DONE]')
    for (let end = 0; end < completedEnds; end += 13) {
      for (const failure of [undefined, new Error('reset')]) {
        const { text, broken } = await relay(bytes.subarray(0, end), [], failure)
        expect(broken).toHaveLength(1)
        expect(text).not.toContain('[DONE]')
        expect(lastEvent(text)).toMatchObject({
          name: 'event: error',
          data: { type: 'error', error: { type: 'server_error', code: 'gateway_unreachable' } },
        })
        if (failure) expect(lastEvent(text).data.error.message).toBe('explained: reset')
      }
    }
  })

  test('drops half an event: what came before it is whole', async () => {
    const { text } = await relay(streamHead + delta('half').slice(0, 40))
    expect(text).not.toContain('event: response.output_text.delta')
  })

  test('never passes on a [DONE] that came without one', async () => {
    const { text } = await relay(`${streamHead}data: [DONE]\n\n`)
    expect(text).not.toContain('[DONE]')
    expect(lastEvent(text).name).toBe('event: error')
  })

  test.each(['event: response.completed\ndata: {"oops\n\n', 'event: response.created\ndata: 1\n\n'])(
    'ends with an error event at one that cannot be read: %j',
    async (event) => {
      const { text } = await relay(streamHead + event + delta('never'))
      expect(text).not.toContain('never')
      expect(lastEvent(text).data.error.message).toMatch(/cannot be read/)
    },
  )
})

describe('an event over 8 MiB', () => {
  const large = 'x'.repeat(9 * 1024 * 1024)
  const cuts = (bytes: number) => Array.from({ length: 300 }, (_, index) => Math.floor((index * bytes) / 300))

  test('ends the stream with an error event when it carries the model', async () => {
    const text = streamHead + sse({ type: 'response.completed', response: responseObject({ output: [large] }) })
    const relayed = await relay(text, cuts(text.length))
    expect(relayed.text.length).toBeLessThan(10_000)
    expect(lastEvent(relayed.text).data.error.message).toMatch(/too large/)
  })

  test('is passed on unchanged when it does not', async () => {
    const text = streamHead + delta(large) + wholeStream.slice(wholeStream.indexOf('event: response.output_text.done'))
    const relayed = await relay(text, cuts(text.length))
    expect(relayed.text === text.replaceAll('"model":"openclaw"', '"model":"gpt-4o"')).toBe(true)
  })

  test('that the gateway dies in is closed before the error event', async () => {
    const relayed = await relay(delta(large).slice(0, -10), cuts(large.length))
    expect(relayed.text.slice(-2000).split('\n\n').at(-2)).toMatch(/^event: error\n/)
  })
})

test('many tiny chunks of one event cost time in proportion to its size', () => {
  const cutter = new EventCutter()
  const byte = Buffer.from('x')
  const startedAt = performance.now()
  for (let count = 0; count < 1_000_000; count++) cutter.cut(byte)
  expect(cutter.heldBytes).toBe(1_000_000)
  expect(performance.now() - startedAt).toBeLessThan(5_000)
})
