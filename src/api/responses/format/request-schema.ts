import { type Static, type TSchema, Type } from '@sinclair/typebox'
import { OneOf } from '#http/validation.ts'
import { modelPattern } from '#openclaw/model.ts'

/** What clients send: a field that is null is as good as left out. */
const Maybe = <S extends TSchema>(schema: S) => Type.Optional(Type.Union([schema, Type.Null()]))

/** One of several shapes told apart by `type`: a fault names what is wrong with the one that was meant. */
const Tagged = <S extends TSchema[]>(shapes: [...S], description?: string) =>
  Type.Unsafe<Static<S[number]>>({
    type: 'object',
    discriminator: { propertyName: 'type' },
    oneOf: shapes,
    required: ['type'],
    ...(description && { description }),
  })

const functionName = Type.String({ minLength: 1, maxLength: 64, pattern: '^[a-zA-Z0-9_-]+$' })
const callId = Type.String({ minLength: 1, maxLength: 64 })
const status = Maybe(OneOf(['in_progress', 'completed', 'incomplete']))
const id = Maybe(Type.String())

const InputText = Type.Object({ type: Type.Literal('input_text'), text: Type.String() }, { $id: 'InputText' })
const InputImage = Type.Object(
  {
    type: Type.Literal('input_image'),
    image_url: Maybe(
      Type.String({ description: 'A `data:` URL (PNG, JPEG, GIF, WebP, HEIC, HEIF; up to 10 MB) or an http(s) URL.' }),
    ),
    file_id: Maybe(Type.String()),
    detail: Maybe(OneOf(['low', 'high', 'auto', 'original'])),
  },
  { $id: 'InputImage' },
)
const InputFile = Type.Object(
  {
    type: Type.Literal('input_file'),
    filename: Maybe(Type.String()),
    file_data: Maybe(
      Type.String({ description: 'A `data:` URL or bare base64 (text, Markdown, HTML, CSV, JSON, PDF; up to 5 MB).' }),
    ),
    file_url: Maybe(Type.String()),
    file_id: Maybe(Type.String()),
  },
  { $id: 'InputFile' },
)
const OutputText = Type.Object({ type: Type.Literal('output_text'), text: Type.String() }, { $id: 'InputOutputText' })
const Refusal = Type.Object({ type: Type.Literal('refusal'), refusal: Type.String() }, { $id: 'InputRefusal' })

/** Of the format, and beyond what an agent takes: `request.ts` refuses them with words. */
const OtherPart = Type.Object({ type: OneOf(['input_audio', 'input_video']) }, { $id: 'InputOtherPart' })

const ContentPart = Tagged([InputText, InputImage, InputFile, OutputText, Refusal, OtherPart])
export type ContentPart = Static<typeof ContentPart>

const MessageItem = Type.Object(
  {
    type: Type.Literal('message', { description: 'May be left out.' }),
    id,
    role: OneOf(['user', 'assistant', 'system', 'developer']),
    content: Type.Union([Type.String(), Type.Array(ContentPart)]),
    phase: Maybe(OneOf(['commentary', 'final_answer'])),
    status,
  },
  { $id: 'InputMessage' },
)
const FunctionCallItem = Type.Object(
  {
    type: Type.Literal('function_call'),
    id,
    call_id: callId,
    name: functionName,
    arguments: Type.String(),
    status,
  },
  { $id: 'InputFunctionCall' },
)
const FunctionCallOutputItem = Type.Object(
  {
    type: Type.Literal('function_call_output'),
    id,
    call_id: callId,
    output: Type.Union([Type.String(), Type.Array(ContentPart)]),
    status,
  },
  { $id: 'InputFunctionCallOutput' },
)
const ReasoningItem = Type.Object({ type: Type.Literal('reasoning'), id }, { $id: 'InputReasoning' })
const ItemReference = Type.Object(
  { type: Type.Literal('item_reference', { description: 'May be left out.' }), id: Type.String() },
  { $id: 'InputItemReference' },
)

const otherItems = [
  ...['compaction', 'custom_tool_call', 'custom_tool_call_output', 'web_search_call', 'file_search_call'],
  ...['computer_call', 'computer_call_output', 'image_generation_call', 'code_interpreter_call', 'local_shell_call'],
  ...['local_shell_call_output', 'shell_call', 'shell_call_output', 'apply_patch_call', 'apply_patch_call_output'],
  ...['mcp_list_tools', 'mcp_approval_request', 'mcp_approval_response', 'mcp_call', 'tool_search_call'],
] as unknown as readonly ['compaction', 'web_search_call']
const OtherItem = Type.Object({ type: OneOf(otherItems) }, { $id: 'InputOtherItem' })

const InputItem = Tagged([
  MessageItem,
  FunctionCallItem,
  FunctionCallOutputItem,
  ReasoningItem,
  ItemReference,
  OtherItem,
])
/** Without those that are refused, once a request was read. */
export type InputItem = Exclude<Static<typeof InputItem>, Static<typeof OtherItem>>
export type MessageItem = Static<typeof MessageItem>

const ToolParam = Type.Object({
  type: Type.String({ description: '`function`: the agent brings its own tools along.' }),
  name: Type.Optional(functionName),
  description: Maybe(Type.String()),
  parameters: Maybe(Type.Record(Type.String(), Type.Unknown())),
  strict: Maybe(Type.Boolean()),
})

const ToolChoiceParam = Type.Union([
  OneOf(['none', 'auto', 'required']),
  Type.Object({
    type: Type.String({ description: '`function` with its `name`, or `allowed_tools`.' }),
    name: Type.Optional(functionName),
    mode: Type.Optional(OneOf(['none', 'auto', 'required'])),
    tools: Type.Optional(Type.Array(Type.Object({ type: Type.String(), name: Type.Optional(Type.String()) }))),
  }),
])

export const Metadata = Type.Record(Type.String({ maxLength: 64 }), Type.String({ maxLength: 512 }), {
  maxProperties: 16,
})

const shared = {
  model: Type.String({
    pattern: modelPattern,
    description:
      '`openclaw` for the instance’s own model, or any model of its provider, with or without the provider before a `/`.',
  }),
  temperature: Maybe(Type.Number({ minimum: 0, maximum: 2 })),
  top_p: Maybe(Type.Number({ minimum: 0, maximum: 1 })),
  presence_penalty: Maybe(Type.Number({ minimum: -2, maximum: 2 })),
  frequency_penalty: Maybe(Type.Number({ minimum: -2, maximum: 2 })),
  top_logprobs: Maybe(Type.Integer({ minimum: 0, maximum: 20 })),
  parallel_tool_calls: Maybe(Type.Boolean()),
  metadata: Maybe(Metadata),
  store: Maybe(Type.Boolean({ description: 'Whether the answer can be read later; it can unless this is false.' })),
  service_tier: Maybe(Type.String()),
  stream: Maybe(Type.Boolean({ description: 'Whether the answer comes as server-sent events.' })),
}

/**
 * What `POST …/responses` takes. Every field of the format is known by name, so that one that cannot be honoured is
 * refused with words (`request.ts`); how each is treated is in docs/responses.md.
 */
export const CreateResponse = Type.Object(
  {
    ...shared,
    input: Type.Union([Type.String(), Type.Array(InputItem)], {
      description: 'What you say: a text, or a list of items.',
    }),
    instructions: Maybe(Type.String({ description: 'Added to the agent’s system prompt for this turn.' })),
    previous_response_id: Maybe(
      Type.String({ description: 'Must be the latest response of the session: the path decides which that is.' }),
    ),
    tools: Maybe(Type.Array(ToolParam, { maxItems: 128 })),
    tool_choice: Maybe(ToolChoiceParam),
    max_output_tokens: Maybe(Type.Integer({ minimum: 16 })),
    text: Maybe(
      Type.Object({
        format: Maybe(Type.Object({ type: Type.String({ description: 'Only `text`.' }) })),
        verbosity: Maybe(Type.String()),
      }),
    ),
    reasoning: Maybe(Type.Object({})),
    truncation: Maybe(OneOf(['auto', 'disabled'])),
    include: Maybe(Type.Array(Type.String())),
    stream_options: Maybe(Type.Object({ include_obfuscation: Maybe(Type.Boolean()) })),
    background: Maybe(Type.Boolean()),
    max_tool_calls: Maybe(Type.Integer({ minimum: 1 })),
    safety_identifier: Maybe(Type.String()),
    prompt_cache_key: Maybe(Type.String()),
    prompt_cache_retention: Maybe(Type.String()),
    user: Maybe(Type.String()),
    conversation: Type.Optional(Type.Unknown()),
    prompt: Type.Optional(Type.Unknown()),
    context_management: Type.Optional(Type.Unknown()),
  },
  {
    $id: 'CreateResponse',
    additionalProperties: true,
    description:
      'The Responses format. What the agent cannot honour is a 400 that names the field; some hints are taken without effect. The table of all fields is in docs/responses.md.',
    examples: [{ model: 'openclaw', input: 'What files are in the current directory?' }],
  },
)
export type CreateResponse = Static<typeof CreateResponse>

/** Names that the schema knows: any other is refused. */
export const responseFields: ReadonlySet<string> = new Set(Object.keys(CreateResponse.properties))
