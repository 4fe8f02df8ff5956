import { type Static, type TSchema, Type } from '@sinclair/typebox'
import { responseStatuses } from '#database/response-schema.ts'
import { Code } from '#http/error-body.ts'
import { namedExamples } from '#http/examples.ts'
import { Nullable, OneOf } from '#platform/typebox.ts'
import { Approval } from '#turns/approval-schema.ts'
import { AllowedMode, Metadata, Parameters, toolChoiceDescription } from './request-schema.ts'

// These schemas allow no other fields, because the tests validate every response and event with them.
const exact = { additionalProperties: false } as const
const NullOr = <S extends TSchema>(schema: S, description: string) => Type.Union([schema, Type.Null()], { description })
const Count = (description: string) => Type.Integer({ minimum: 0, description })
/** A field with one possible value. */
export const always = <const V extends string | number | boolean>(value: V, why = '') =>
  Type.Literal(value, { description: `Always \`${value}\`${why}.` })
const alwaysNull = Type.Null({ description: 'Always null.' })

const ItemStatus = OneOf(
  ['in_progress', 'completed', 'incomplete'],
  '`incomplete` when the turn ended before the item was complete.',
)
const ItemId = Type.String({ description: 'The id of the item.' })

export const noLogprobs = Type.Array(Type.Unknown(), {
  maxItems: 0,
  description: 'Always empty: an agent reports no probabilities.',
})

export const OutputText = Type.Object(
  {
    type: always('output_text'),
    text: Type.String({ description: 'The text.' }),
    annotations: Type.Array(Type.Unknown(), {
      maxItems: 0,
      description: 'Always empty: an agent makes no annotations.',
    }),
    logprobs: noLogprobs,
  },
  { $id: 'OutputText', ...exact, description: 'A text of the agent.' },
)

const OutputMessage = Type.Object(
  {
    type: always('message'),
    id: ItemId,
    status: ItemStatus,
    role: always('assistant'),
    content: Type.Array(OutputText, { description: 'The text: one part, or none while it is being written.' }),
    phase: Type.Optional(
      OneOf(
        ['commentary', 'final_answer'],
        '`final_answer` for the answer, `commentary` for text before a call of your tools.',
      ),
    ),
  },
  { $id: 'OutputMessage', ...exact, description: 'What the agent says.' },
)

const OutputFunctionCall = Type.Object(
  {
    type: always('function_call'),
    id: ItemId,
    call_id: Type.String({ description: 'The `call_id` of the `function_call_output` with the result.' }),
    name: Type.String({ description: 'The name of your function.' }),
    arguments: Type.String({ description: 'The arguments, as JSON.' }),
    status: ItemStatus,
  },
  {
    $id: 'OutputFunctionCall',
    ...exact,
    description: 'A call of one of your functions. Send its result as a `function_call_output`.',
  },
)

export const OutputItem = Type.Union([OutputMessage, OutputFunctionCall], { description: 'What the agent made.' })
export type OutputItem = Static<typeof OutputItem>

export const Usage = Type.Object(
  {
    input_tokens: Count('Tokens that the model read.'),
    input_tokens_details: Type.Object(
      {
        cached_tokens: Count('Those that it read from its cache.'),
        cache_write_tokens: Count('Those that it wrote into its cache.'),
      },
      { ...exact, description: 'Parts of `input_tokens`.' },
    ),
    output_tokens: Count('Tokens that the model wrote.'),
    output_tokens_details: Type.Object(
      { reasoning_tokens: Count('Those that it wrote to think.') },
      { ...exact, description: 'Parts of `output_tokens`.' },
    ),
    total_tokens: Count('All tokens.'),
  },
  { $id: 'ResponseUsage', ...exact, description: 'The tokens of a turn.' },
)
export type Usage = Static<typeof Usage>

export const ResponseTool = Type.Object(
  {
    type: always('function'),
    name: Type.String({ description: 'The name of your function.' }),
    description: Nullable(Type.String({ description: 'What it does.' })),
    parameters: Nullable(Parameters),
    strict: Nullable(Type.Boolean({ description: 'Never true: the agent does not make its model follow a schema.' })),
  },
  { $id: 'ResponseTool', ...exact, description: 'A function of yours.' },
)
export type ResponseTool = Static<typeof ResponseTool>

const NamedTool = Type.Object(
  { type: always('function'), name: Type.String({ description: 'The name of one of `tools`.' }) },
  exact,
)
export const ResponseToolChoice = Type.Union(
  [
    OneOf(['none', 'auto', 'required']),
    NamedTool,
    Type.Object(
      {
        type: always('allowed_tools'),
        mode: AllowedMode,
        tools: Type.Array(NamedTool, { description: 'The allowed tools.' }),
      },
      exact,
    ),
  ],
  { description: toolChoiceDescription },
)
export type ResponseToolChoice = Static<typeof ResponseToolChoice>

const TextFormat = Type.Union(
  [
    Type.Object({ type: always('text') }, exact),
    Type.Object({ type: always('json_object') }, exact),
    Type.Object(
      {
        type: always('json_schema'),
        name: Type.String({ description: 'The name of the value.' }),
        description: Nullable(Type.String({ description: 'What the value is for.' })),
        schema: Type.Record(Type.String(), Type.Unknown(), { description: 'The JSON Schema of the answer.' }),
        strict: Nullable(Type.Boolean({ description: 'The one of the request.' })),
      },
      exact,
    ),
  ],
  { description: 'The format of the text.' },
)

/** The fields of a request that its response repeats: the effective value, else the neutral value of the format. */
const echoed = {
  model: Type.String({ description: 'The model as you named it.' }),
  previous_response_id: Nullable(Type.String({ description: 'The one of the request.' })),
  instructions: Nullable(Type.String({ description: 'Those of the request.' })),
  conversation: Type.Optional(
    Type.Object(
      { id: Type.String({ description: 'The id of the session.' }) },
      { ...exact, description: 'The session, if the request names it as `conversation`.' },
    ),
  ),
  metadata: Metadata,
  tools: Type.Array(ResponseTool, { description: 'Your tools, as the request has them.' }),
  tool_choice: ResponseToolChoice,
  parallel_tool_calls: always(true),
  text: Type.Object({ format: TextFormat }, { ...exact, description: 'How the text is written.' }),
  reasoning: Type.Object(
    { effort: alwaysNull, summary: alwaysNull },
    { ...exact, description: 'Nothing is known of it.' },
  ),
  temperature: Type.Number({ description: 'Your value if it is sent to the model, else 1.' }),
  top_p: Type.Number({ description: 'Your value if it is sent to the model, else 1.' }),
  presence_penalty: always(0),
  frequency_penalty: always(0),
  top_logprobs: always(0),
  max_output_tokens: Nullable(Type.Integer({ description: 'The one of the request.' })),
  max_tool_calls: alwaysNull,
  truncation: always('auto', ': an agent shortens its conversation by itself when it grows too long'),
  store: Type.Boolean({ description: 'Whether the response can be read later.' }),
  background: Type.Boolean({ description: 'Whether the turn goes on without a connection.' }),
  service_tier: always('default'),
  safety_identifier: alwaysNull,
  prompt_cache_key: alwaysNull,
}
const EchoedFields = Type.Object(echoed, exact)
export type EchoedFields = Static<typeof EchoedFields>

export const ResponseError = Type.Object(
  { code: Code, message: Type.String({ description: 'The message for people.' }) },
  exact,
)
export type ResponseError = Static<typeof ResponseError>

const IncompleteDetails = Type.Object(
  { reason: OneOf(['max_output_tokens', 'cancelled'], '`cancelled` when the status is `cancelled`.') },
  exact,
)

export const exampleResponse = {
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
}

const withCall = {
  ...exampleResponse,
  output: [
    {
      type: 'function_call',
      id: 'fc_5f0c9a3e7b214d6f8a1b2c3d4e5f6071',
      call_id: 'call_5f0c9a3e7b214d6f',
      name: 'find_order',
      arguments: '{"number": "4711"}',
      status: 'completed',
    },
  ],
  tools: [
    {
      type: 'function',
      name: 'find_order',
      description: 'Tells where an order is.',
      parameters: { type: 'object', properties: { number: { type: 'string' } }, required: ['number'] },
      strict: null,
    },
  ],
}

export const ResponseObject = Type.Object(
  {
    id: Type.String({
      description: 'You may send it as `previous_response_id`. The session remembers the conversation without it.',
    }),
    object: always('response'),
    created_at: Type.Integer({ description: 'Unix time in seconds.' }),
    completed_at: Nullable(Type.Integer({ description: 'Null unless `completed`.' })),
    status: OneOf(
      [...responseStatuses, 'queued'],
      '`queued` only in the first events of a stream: the turn waits for the earlier turns of its session.',
    ),
    incomplete_details: NullOr(IncompleteDetails, 'Why the status is `incomplete` or `cancelled`; null otherwise.'),
    requires_action: Type.Optional(
      Type.Object(
        {
          type: always('approval'),
          approvals: Type.Array(Approval, { description: 'Those that wait for an answer.' }),
        },
        {
          additionalProperties: false,
          description: 'Only while the turn waits for the approval of a command, with `approvals: "ask"`.',
        },
      ),
    ),
    error: NullOr(ResponseError, 'Why the status is `failed`; null otherwise.'),
    output: Type.Array(OutputItem, {
      description: 'The text of the agent, and its calls of your tools. Calls of its own tools are not included.',
    }),
    usage: NullOr(Usage, 'The tokens of the turn; null when they are unknown.'),
    ...echoed,
  },
  {
    $id: 'AgentResponse',
    ...exact,
    description: 'The answer of an agent to one message, in the Responses format.',
    ...namedExamples({ text: exampleResponse, 'call of your tool': withCall }),
  },
)
export type ResponseObject = Static<typeof ResponseObject>
