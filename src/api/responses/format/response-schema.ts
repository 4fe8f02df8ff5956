import { type Static, type TSchema, Type } from '@sinclair/typebox'
import { responseStatuses } from '#database/response-schema.ts'
import { Code } from '#http/error-body.ts'
import { Nullable, OneOf } from '#http/validation.ts'
import { Metadata } from './request-schema.ts'

// These schemas allow no other fields: the tests validate every response and event with them.
const exact = { additionalProperties: false } as const
const NullOr = <S extends TSchema>(schema: S) => Type.Union([schema, Type.Null()])

const ItemStatus = OneOf(['in_progress', 'completed', 'incomplete'])

export const OutputText = Type.Object(
  {
    type: Type.Literal('output_text'),
    text: Type.String(),
    annotations: Type.Array(Type.Unknown(), {
      maxItems: 0,
      description: 'Always empty: an agent makes no annotations.',
    }),
    logprobs: Type.Array(Type.Unknown(), { maxItems: 0 }),
  },
  exact,
)

export const OutputMessage = Type.Object(
  {
    type: Type.Literal('message'),
    id: Type.String(),
    status: ItemStatus,
    role: Type.Literal('assistant'),
    content: Type.Array(OutputText),
    phase: Type.Optional(
      OneOf(
        ['commentary', 'final_answer'],
        '`final_answer` for the answer, `commentary` for text before a call of your tools.',
      ),
    ),
  },
  exact,
)

export const OutputFunctionCall = Type.Object(
  {
    type: Type.Literal('function_call'),
    id: Type.String(),
    call_id: Type.String({ description: 'The `call_id` of the `function_call_output` with the result.' }),
    name: Type.String(),
    arguments: Type.String({ description: 'JSON.' }),
    status: ItemStatus,
  },
  exact,
)

export const OutputItem = Type.Union([OutputMessage, OutputFunctionCall])
export type OutputItem = Static<typeof OutputItem>

export const Usage = Type.Object(
  {
    input_tokens: Type.Integer({ minimum: 0 }),
    input_tokens_details: Type.Object(
      { cached_tokens: Type.Integer({ minimum: 0 }), cache_write_tokens: Type.Integer({ minimum: 0 }) },
      exact,
    ),
    output_tokens: Type.Integer({ minimum: 0 }),
    output_tokens_details: Type.Object({ reasoning_tokens: Type.Integer({ minimum: 0 }) }, exact),
    total_tokens: Type.Integer({ minimum: 0 }),
  },
  exact,
)
export type Usage = Static<typeof Usage>

export const ResponseTool = Type.Object(
  {
    type: Type.Literal('function'),
    name: Type.String(),
    description: Nullable(Type.String()),
    parameters: NullOr(Type.Record(Type.String(), Type.Unknown())),
    strict: Nullable(Type.Boolean({ description: 'Never true: the agent does not make its model follow a schema.' })),
  },
  exact,
)
export type ResponseTool = Static<typeof ResponseTool>

const ToolMode = OneOf(['none', 'auto', 'required'])
const NamedTool = Type.Object({ type: Type.Literal('function'), name: Type.String() }, exact)
export const ResponseToolChoice = Type.Union([
  ToolMode,
  NamedTool,
  Type.Object({ type: Type.Literal('allowed_tools'), mode: ToolMode, tools: Type.Array(NamedTool) }, exact),
])
export type ResponseToolChoice = Static<typeof ResponseToolChoice>

/**
 * The fields of a request that its response repeats: the value that took effect, else the neutral value of the format.
 */
const echoed = {
  model: Type.String({ description: 'The model as you named it.' }),
  previous_response_id: Nullable(Type.String()),
  instructions: Nullable(Type.String()),
  metadata: Metadata,
  tools: Type.Array(ResponseTool),
  tool_choice: ResponseToolChoice,
  parallel_tool_calls: Type.Literal(true),
  text: Type.Object({ format: Type.Object({ type: Type.Literal('text') }, exact) }, exact),
  reasoning: Type.Object({ effort: Type.Null(), summary: Type.Null() }, exact),
  temperature: Type.Number({ description: 'Your value if it is sent to the model, else 1.' }),
  top_p: Type.Number({ description: 'Your value if it is sent to the model, else 1.' }),
  presence_penalty: Type.Literal(0),
  frequency_penalty: Type.Literal(0),
  top_logprobs: Type.Literal(0),
  max_output_tokens: Nullable(Type.Integer()),
  max_tool_calls: Type.Null(),
  truncation: Type.Literal('auto', {
    description: 'An agent shortens its conversation by itself when it grows too long.',
  }),
  store: Type.Boolean(),
  background: Type.Literal(false),
  service_tier: Type.Literal('default'),
  safety_identifier: Type.Null(),
  prompt_cache_key: Type.Null(),
}
const EchoedFields = Type.Object(echoed, exact)
export type EchoedFields = Static<typeof EchoedFields>

export const ResponseError = Type.Object({ code: Code, message: Type.String() }, exact)
export type ResponseError = Static<typeof ResponseError>

const IncompleteDetails = Type.Object(
  { reason: OneOf(['max_output_tokens', 'cancelled'], '`cancelled` when the status is `cancelled`.') },
  exact,
)

export const ResponseObject = Type.Object(
  {
    id: Type.String({
      description: 'You may send it as `previous_response_id`. The session remembers the conversation without it.',
    }),
    object: Type.Literal('response'),
    created_at: Type.Integer({ description: 'Unix time in seconds.' }),
    completed_at: Nullable(Type.Integer({ description: 'Null unless `completed`.' })),
    status: OneOf(
      [...responseStatuses, 'queued'],
      '`queued` only in the first events of a stream: the turn waits for the earlier turns of its session.',
    ),
    incomplete_details: NullOr(IncompleteDetails),
    error: NullOr(ResponseError),
    output: Type.Array(OutputItem, {
      description: 'The text of the agent, and its calls of your tools. Calls of its own tools are not included.',
    }),
    usage: NullOr(Usage),
    ...echoed,
  },
  {
    $id: 'AgentResponse',
    ...exact,
    examples: [
      {
        id: 'resp_019aa7d0c0ff7e5e9d1f0a2b3c4d5e6f',
        object: 'response',
        created_at: 1771066800,
        completed_at: 1771066804,
        status: 'completed',
        incomplete_details: null,
        error: null,
        output: [
          {
            type: 'message',
            id: 'msg_5f0c9a3e7b214d6f8a1b2c3d4e5f6071',
            status: 'completed',
            role: 'assistant',
            content: [{ type: 'output_text', text: 'README.md and package.json.', annotations: [], logprobs: [] }],
            phase: 'final_answer',
          },
        ],
        usage: {
          input_tokens: 42,
          input_tokens_details: { cached_tokens: 0, cache_write_tokens: 0 },
          output_tokens: 8,
          output_tokens_details: { reasoning_tokens: 0 },
          total_tokens: 50,
        },
        model: 'openclaw',
        previous_response_id: null,
        instructions: null,
        metadata: {},
        tools: [],
        tool_choice: 'auto',
        parallel_tool_calls: true,
        text: { format: { type: 'text' } },
        reasoning: { effort: null, summary: null },
        temperature: 1,
        top_p: 1,
        presence_penalty: 0,
        frequency_penalty: 0,
        top_logprobs: 0,
        max_output_tokens: null,
        max_tool_calls: null,
        truncation: 'auto',
        store: true,
        background: false,
        service_tier: 'default',
        safety_identifier: null,
        prompt_cache_key: null,
      },
    ],
  },
)
export type ResponseObject = Static<typeof ResponseObject>
