import { Type } from '@sinclair/typebox'
import { InstanceParams } from '#http/instance-params.ts'
import { Nullable, OneOf } from '#platform/typebox.ts'
import { ResponseStreamEvent } from './format/event-schemas.ts'
import { ResponseObject } from './format/response-schema.ts'

export const BySession = Type.Object({
  ...InstanceParams.properties,
  session_id: Type.String({
    description:
      'Any name that you choose, up to 200 bytes, such as a user id. The session begins with its first message.',
  }),
})

export const responseAnswers = {
  200: {
    description: 'The answer of the agent, as JSON or, with `"stream": true`, as a stream.',
    content: { 'application/json': { schema: ResponseObject }, 'text/event-stream': { schema: ResponseStreamEvent } },
  },
}

export const DeletedResponse = Type.Object(
  {
    id: Type.String({ description: 'The id of the response.' }),
    object: Type.Literal('response', { description: 'Always `response`.' }),
    deleted: Type.Literal(true, { description: 'Always true.' }),
  },
  { examples: [{ id: 'resp_019aa7d0c0ff7e5e9d1f0a2b3c4d5e6f', object: 'response', deleted: true }] },
)

export const InputItems = Type.Object(
  {
    object: Type.Literal('list', { description: 'Always `list`.' }),
    data: Type.Array(
      Type.Object(
        {
          type: Type.String({ description: 'The kind of the item, such as `message` or `function_call_output`.' }),
          id: Type.String({ description: 'The id of the item.' }),
        },
        { additionalProperties: true },
      ),
      { description: 'The items of the request, each with the fields that it was sent with.' },
    ),
    first_id: Nullable(Type.String({ description: 'The id of the first item of the page; null for an empty page.' })),
    last_id: Nullable(Type.String({ description: 'The id of the last item of the page; null for an empty page.' })),
    has_more: Type.Boolean({ description: 'Whether there is another page: send `last_id` as `after`.' }),
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
      Type.Integer({ minimum: 1, maximum: 100, default: 20, description: 'The number of items of a page, at most.' }),
    ),
    order: Type.Optional(OneOf(['asc', 'desc'], '`desc`, the default, for the last item first.')),
    after: Type.Optional(Type.String({ description: 'The id of the last item of the previous page.' })),
  },
  { additionalProperties: false },
)

export const StreamFrom = Type.Object(
  {
    stream: Type.Optional(Type.Boolean({ description: 'Whether the events of a background response are sent.' })),
    starting_after: Type.Optional(
      Type.Integer({
        minimum: 0,
        maximum: 2 ** 31 - 1,
        description: 'The `sequence_number` of the last event that you have.',
      }),
    ),
  },
  { additionalProperties: false },
)
