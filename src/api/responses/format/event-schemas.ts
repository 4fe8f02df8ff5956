import { type Static, type TSchema, Type } from '@sinclair/typebox'
import { namedExamples } from '#http/examples.ts'
import { OneOf } from '#platform/typebox.ts'
import { Approval } from '#turns/approval-schema.ts'
import { always, exampleResponse, noLogprobs, OutputItem, OutputText, ResponseObject } from './response-schema.ts'

const sequence_number = Type.Integer({ minimum: 0, description: 'Counts from 0 without gaps.' })
/** Converts `response.output_text.delta` to `ResponseOutputTextDelta`. */
const schemaName = (type: string) => type.replace(/(?:^|[:._])(\w)/g, (_, first: string) => first.toUpperCase())
const event = <const N extends string, P extends Record<string, TSchema>>(name: N, properties: P) =>
  Type.Object(
    { type: always(name), sequence_number, ...properties },
    { $id: `${schemaName(name)}Event`, additionalProperties: false },
  )

const output_index = Type.Integer({ minimum: 0, description: 'The place of the item in `output`.' })
const item_id = Type.String({ description: 'The id of the item.' })
const content_index = Type.Integer({ minimum: 0, description: 'The place of the part in `content` of the item.' })
const inPart = { item_id, output_index, content_index }
const response = ResponseObject
const tool = Type.Object(
  {
    id: Type.String({ description: 'The same in both events of a call.' }),
    name: Type.String({ description: 'The name of the tool, such as `exec`.' }),
    title: Type.Optional(Type.String({ description: 'A line about the call, which may have parts of its arguments.' })),
    status: OneOf(['in_progress', 'completed', 'failed'], '`failed`: it failed, was refused, or its end is unknown.'),
    started_at: Type.Integer({ description: 'Unix time in seconds.' }),
    duration_ms: Type.Optional(Type.Integer({ minimum: 0, description: 'How long an ended call took, if known.' })),
  },
  { additionalProperties: false, description: "A call of one of the agent's own tools." },
)

const approval = Approval

/** The schema of every event of a stream, by its type. An item and a part are added without their text. */
export const eventSchemas = {
  'response.created': event('response.created', { response }),
  'response.queued': event('response.queued', { response }),
  'response.in_progress': event('response.in_progress', { response }),
  'response.output_item.added': event('response.output_item.added', { output_index, item: OutputItem }),
  'response.content_part.added': event('response.content_part.added', { ...inPart, part: OutputText }),
  'response.output_text.delta': event('response.output_text.delta', {
    ...inPart,
    delta: Type.String({ minLength: 1, description: 'The next piece of the text.' }),
    logprobs: noLogprobs,
  }),
  'response.output_text.done': event('response.output_text.done', {
    ...inPart,
    text: Type.String({ minLength: 1, description: 'The whole text of the part.' }),
    logprobs: noLogprobs,
  }),
  'response.content_part.done': event('response.content_part.done', { ...inPart, part: OutputText }),
  'response.function_call_arguments.delta': event('response.function_call_arguments.delta', {
    item_id,
    output_index,
    delta: Type.String({ minLength: 1, description: 'The next piece of the arguments.' }),
  }),
  'response.function_call_arguments.done': event('response.function_call_arguments.done', {
    item_id,
    output_index,
    arguments: Type.String({ description: 'All arguments, as JSON.' }),
  }),
  'response.output_item.done': event('response.output_item.done', { output_index, item: OutputItem }),
  'chowder:tool.started': event('chowder:tool.started', { tool }),
  'chowder:tool.ended': event('chowder:tool.ended', { tool }),
  'chowder:approval.requested': event('chowder:approval.requested', { approval }),
  'chowder:approval.resolved': event('chowder:approval.resolved', { approval }),
  'response.completed': event('response.completed', { response }),
  'response.incomplete': event('response.incomplete', { response }),
  'response.failed': event('response.failed', { response }),
} as const

/** Any event of a stream, for the document. */
export const ResponseStreamEvent = Type.Union(Object.values(eventSchemas), {
  $id: 'ResponseStreamEvent',
  description:
    'With `"stream": true`: server-sent events. Each has a line `event:` with its type and a line `data:` with this ' +
    'JSON; `sequence_number` counts from 0. The last event is always `response.completed`, `response.incomplete` or ' +
    '`response.failed`. `data: [DONE]` follows it.',
  ...namedExamples({
    'a piece of text': {
      type: 'response.output_text.delta',
      sequence_number: 4,
      item_id: exampleResponse.output[0]?.id,
      output_index: 0,
      content_index: 0,
      delta: 'README.md and',
      logprobs: [],
    },
    'a tool': {
      type: 'chowder:tool.ended',
      sequence_number: 3,
      tool: {
        id: 'toolu_01',
        name: 'exec',
        title: 'Exec list files',
        status: 'completed',
        started_at: exampleResponse.created_at,
        duration_ms: 210,
      },
    },
    'the end': { type: 'response.completed', sequence_number: 9, response: exampleResponse },
  }),
})

export type StreamEvent = {
  [N in keyof typeof eventSchemas]: Static<(typeof eventSchemas)[N]>
}[keyof typeof eventSchemas]

export type EventType = StreamEvent['type']

/** The fields of an event of one type, without those of all events. */
export type EventFields<T extends EventType> = Omit<Extract<StreamEvent, { type: T }>, 'type' | 'sequence_number'>

export const terminalEvents: ReadonlySet<string> = new Set([
  'response.completed',
  'response.incomplete',
  'response.failed',
])
