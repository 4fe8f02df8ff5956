import { type Static, Type } from '@sinclair/typebox'
import { OptionalOrNull } from '#api/responses/format/input-schema.ts'
import { CreateResponse } from '#api/responses/format/request-schema.ts'
import { always, exampleResponse, Usage } from '#api/responses/format/response-schema.ts'
import { closed } from '#http/client-schema.ts'

const { model, input, instructions, user, ...others } = CreateResponse.properties
const { service_tier, prompt_cache_key, prompt_cache_retention } = others

/** The body of `POST …/responses/compact`. */
export const CompactConversation = Type.Object(
  {
    model,
    input: OptionalOrNull({ ...input, description: 'The conversation: a text, or a list of items.' }),
    previous_response_id: OptionalOrNull(
      Type.String({ description: 'A response whose stored conversation comes before `input`.' }),
    ),
    ...{ instructions, user, service_tier, prompt_cache_key, prompt_cache_retention },
  },
  {
    $id: 'CompactConversation',
    ...closed,
    description: 'A conversation to compact. It needs `input`, `previous_response_id` or both.',
    examples: [{ model: 'openclaw', input: 'My name is Ada. I live in Rome.' }],
  },
)
export type CompactConversation = Static<typeof CompactConversation>

/** The fields of the schema: the route refuses all others. */
export const compactFields: ReadonlySet<string> = new Set(Object.keys(CompactConversation.properties))

const exact = { additionalProperties: false } as const

/** The answer of `POST …/responses/compact`. */
export const Compaction = Type.Object(
  {
    id: Type.String({ description: 'The id of the compaction. It is not stored.' }),
    object: always('response.compaction'),
    created_at: Type.Integer({ description: 'Unix time in seconds.' }),
    output: Type.Array(
      Type.Object(
        {
          type: always('compaction'),
          id: Type.String({ description: 'The id of the item, `cmp_…`.' }),
          encrypted_content: Type.String({ description: 'The summary, which only this instance can open.' }),
        },
        { ...exact, description: 'Send it as an item of `input`, in front of the next message.' },
      ),
      { description: 'One item with the whole conversation.' },
    ),
    usage: Type.Union([Usage, Type.Null()], { description: 'The tokens of the summary; null when they are unknown.' }),
  },
  {
    $id: 'Compaction',
    ...exact,
    description: 'A compacted conversation.',
    examples: [
      {
        id: 'resp_019aa7d0c0ff7e5e9d1f0a2b3c4d5e6f',
        object: 'response.compaction',
        created_at: 1771066800,
        output: [
          { type: 'compaction', id: 'cmp_5f0c9a3e7b214d6f8a1b2c3d4e5f6071', encrypted_content: 'v1.0a1b2c3d.Zm9y' },
        ],
        usage: exampleResponse.usage,
      },
    ],
  },
)
export type Compaction = Static<typeof Compaction>
