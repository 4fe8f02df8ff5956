import { expect } from 'vitest'
import { eventSchemas, type StreamEvent, terminalEvents } from '#api/responses/format/event-schemas.ts'
import { ResponseObject } from '#api/responses/format/response-schema.ts'
import { createAjv } from '#http/validation.ts'
import { present } from './present.ts'

// Each schema has an Ajv of its own, because all contain the same `$id` of the response.
const compile = (schema: object) => createAjv({}).compile(schema)
const validators = new Map(Object.entries(eventSchemas).map(([type, schema]) => [type, compile(schema)]))
const isResponse = compile(ResponseObject)

/** The faults of a response by the schema of the format. */
export function faultsOfResponse(response: unknown): string[] {
  return isResponse(response) ? [] : (isResponse.errors ?? []).map((e) => `${e.instancePath} ${e.message}`)
}

export function faultsOfEvent(event: unknown): string[] {
  const { type } = event as { type: string }
  const validate = validators.get(type)
  if (!validate) return [`unknown event ${type}`]
  return validate(event) ? [] : (validate.errors ?? []).map((e) => `${type}${e.instancePath} ${e.message}`)
}

/** Expects the events of one complete response, in the order of the format. */
export function expectWholeStream(events: readonly StreamEvent[]): void {
  expect(events.flatMap(faultsOfEvent)).toEqual([])
  expect(events.map(({ sequence_number }) => sequence_number)).toEqual(events.map((_, at) => at))
  const [first, ...next] = events.map(({ type }) => type)
  expect(first).toBe('response.created')
  expect(next[0] === 'response.queued' ? next[1] : next[0]).toBe('response.in_progress')
  const terminals = events.filter(({ type }) => terminalEvents.has(type))
  expect(terminals, 'exactly one terminal event').toHaveLength(1)
  const last = present(events.at(-1))
  expect(last).toBe(terminals[0])
  if (!('response' in last)) throw new Error('a terminal event without a response')

  // An item is added empty at the next index, gets deltas only while it is open, and is done with all of them.
  const texts = new Map<number, string>()
  const closed: unknown[] = []
  let open: number | null = null
  for (const event of events) {
    if (!('output_index' in event)) continue
    if (event.type === 'response.output_item.added') {
      expect(open).toBeNull()
      expect(event.output_index).toBe(closed.length)
      open = event.output_index
      texts.set(open, '')
      const empty = event.item.type === 'message' ? { content: [] } : { arguments: '' }
      expect(event.item).toMatchObject({ status: 'in_progress', ...empty })
      continue
    }
    expect(event.output_index, event.type).toBe(open)
    if (event.type === 'response.content_part.added') expect(event.part.text).toBe('')
    if ('delta' in event) texts.set(event.output_index, texts.get(event.output_index) + event.delta)
    if (event.type === 'response.output_text.done') expect(event.text).toBe(texts.get(event.output_index))
    if (event.type === 'response.function_call_arguments.done')
      expect(event.arguments).toBe(texts.get(event.output_index))
    if (event.type === 'response.content_part.done') expect(event.part.text).toBe(texts.get(event.output_index))
    if (event.type !== 'response.output_item.done') continue
    const { item } = event
    const content = item.type === 'message' ? item.content.map(({ text }) => text).join('') : item.arguments
    expect(content).toBe(texts.get(event.output_index))
    closed.push(item)
    open = null
  }
  expect(open, 'an item that was not closed').toBeNull()
  expect(last.response.output).toEqual(closed)
}

/** Reads a stream as a client does: without its comments. `isDone` is whether it ended with `[DONE]`. */
export function readEvents(text: string): { events: StreamEvent[]; isDone: boolean } {
  const pieces = text.split('\n\n').filter((piece) => piece !== '' && !piece.startsWith(':'))
  const isDone = pieces.at(-1) === 'data: [DONE]'
  const events = (isDone ? pieces.slice(0, -1) : pieces).map((piece) => {
    const [name, data, ...more] = piece.split('\n')
    if (more.length > 0 || !data?.startsWith('data: ')) throw new Error(`not one event: ${piece}`)
    const event = JSON.parse(data.slice('data: '.length)) as StreamEvent
    expect(name).toBe(`event: ${event.type}`)
    return event
  })
  return { events, isDone }
}
