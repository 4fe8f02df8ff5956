import { Type } from '@sinclair/typebox'
import { OneOf } from '#http/validation.ts'
import { ResponseObject } from './format/response-schema.ts'

/** Of what was put into words by Chowder itself, and not by Fastify's serializer. */
export const jsonType = 'application/json; charset=utf-8'

const Events = Type.String({
  description:
    'With `"stream": true`: `response.created`, `response.output_text.delta` and the other events of the Responses format, each with a line `event:` and a line `data:` of JSON, numbered from 0 by `sequence_number`. The last is `response.completed`, `response.incomplete` or `response.failed`, whatever happened, and then comes `data: [DONE]`.',
  examples: ['event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"README.md"}\n\n'],
})

export const answers = {
  200: {
    description: 'The agent’s answer: whole, or as it comes with `"stream": true`.',
    content: { 'application/json': { schema: ResponseObject }, 'text/event-stream': { schema: Events } },
  },
}

export const DeletedResponse = Type.Object(
  {
    id: Type.String(),
    object: Type.Literal('response'),
    deleted: Type.Literal(true),
  },
  { examples: [{ id: 'resp_019aa7d0c0ff7e5e9d1f0a2b3c4d5e6f', object: 'response', deleted: true }] },
)

export const Models = Type.Object(
  {
    object: Type.Literal('list'),
    data: Type.Array(
      Type.Object({
        id: Type.String(),
        object: Type.Literal('model'),
        created: Type.Integer({ description: 'When the instance was created: Unix time in seconds.' }),
        owned_by: Type.String(),
      }),
    ),
  },
  {
    examples: [
      { object: 'list', data: [{ id: 'openclaw', object: 'model', created: 1771066800, owned_by: 'openclaw' }] },
    ],
  },
)

export const InputItems = Type.Object(
  {
    object: Type.Literal('list'),
    data: Type.Array(Type.Object({ type: Type.String(), id: Type.String() }, { additionalProperties: true })),
    first_id: Type.Union([Type.String(), Type.Null()]),
    last_id: Type.Union([Type.String(), Type.Null()]),
    has_more: Type.Boolean(),
  },
  {
    examples: [
      {
        object: 'list',
        data: [
          {
            type: 'message',
            id: 'msg_5f0c9a3e7b214d6f8a1b2c3d4e5f6071',
            status: 'completed',
            role: 'user',
            content: [{ type: 'input_text', text: 'Hello' }],
          },
        ],
        first_id: 'msg_5f0c9a3e7b214d6f8a1b2c3d4e5f6071',
        last_id: 'msg_5f0c9a3e7b214d6f8a1b2c3d4e5f6071',
        has_more: false,
      },
    ],
  },
)

export const InputItemsPage = Type.Object(
  {
    limit: Type.Optional(
      Type.Integer({ minimum: 1, maximum: 100, default: 20, description: 'The most items to answer.' }),
    ),
    order: Type.Optional(OneOf(['asc', 'desc'], '`desc`, the default: the last item first.')),
    after: Type.Optional(Type.String({ description: 'The id of the last item of the page before.' })),
  },
  { additionalProperties: false },
)
