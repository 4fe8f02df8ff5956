import { type Static, Type } from '@sinclair/typebox'
import { modelPattern } from '../openclaw/model.ts'

/** The one body that is not strict: what is not named here is for the gateway to judge. */
export const Message = Type.Object(
  {
    model: Type.String({
      pattern: modelPattern,
      description:
        '`openclaw` for the instance’s own model, or any model of its provider, with or without the provider before a `/`.',
    }),
    input: Type.Union([Type.String(), Type.Array(Type.Unknown())], {
      description: 'What you say: a text, or a list of items of the Responses format.',
    }),
    stream: Type.Optional(
      Type.Union([Type.Boolean(), Type.Null()], { description: 'Whether the answer comes as server-sent events.' }),
    ),
  },
  {
    additionalProperties: true,
    description:
      'Every other field of the Responses format, such as `instructions` and `tools`, goes to the agent as it is. `user` is ignored: the path alone decides the session.',
    examples: [{ model: 'openclaw', input: 'What files are in the current directory?' }],
  },
)
export type Message = Static<typeof Message>

const Usage = Type.Object({
  input_tokens: Type.Integer(),
  output_tokens: Type.Integer(),
  total_tokens: Type.Integer(),
})

const Answer = Type.Object(
  {
    id: Type.String({ description: 'May be sent back as `previous_response_id`; the session remembers without it.' }),
    object: Type.Literal('response'),
    created_at: Type.Integer({ description: 'Unix time in seconds.' }),
    status: Type.String({ description: '`completed`, or `failed` with an `error`.' }),
    model: Type.String({ description: 'The model as you named it.' }),
    output: Type.Array(Type.Object({ type: Type.String() }, { additionalProperties: true }), {
      description: 'What the agent says and calls. Its words are in the items of type `message`.',
    }),
    usage: Usage,
  },
  {
    $id: 'Response',
    additionalProperties: true,
    examples: [
      {
        id: 'resp_6f8a9b2c4d1e',
        object: 'response',
        created_at: 1771066800,
        status: 'completed',
        model: 'openclaw',
        output: [
          {
            type: 'message',
            id: 'msg_1f2e3d',
            role: 'assistant',
            status: 'completed',
            content: [{ type: 'output_text', text: 'README.md and package.json.' }],
          },
        ],
        usage: { input_tokens: 42, output_tokens: 8, total_tokens: 50 },
      },
    ],
  },
)

const Events = Type.String({
  description:
    'With `"stream": true`: `response.created`, `response.output_text.delta` and the other events of the Responses format, each with a line `event:` and a line `data:` of JSON. The last is `response.completed`, `response.incomplete` or `response.failed`, and then comes `data: [DONE]`. A stream that broke ends with `error` instead, and without `[DONE]`.',
  examples: ['event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"README.md"}\n\n'],
})

/** What the gateway answers is passed on as it comes; this is for the document. */
export const answers = {
  200: {
    description: 'The agent’s answer: whole, or as it comes with `"stream": true`.',
    content: { 'application/json': { schema: Answer }, 'text/event-stream': { schema: Events } },
  },
}
