import { type Static, type TSchema, Type } from '@sinclair/typebox'
import { closed } from '#http/client-schema.ts'
import { OneOf, textRule } from '#http/validation.ts'
import { modelPattern } from '#openclaw/model.ts'

/** A field that a request may leave out, or send as null, which means the same. */
export const OptionalOrNull = <S extends TSchema>(schema: S) => Type.Optional(Type.Union([schema, Type.Null()]))

/** Of the field `model`. */
export const modelName = textRule(
  modelPattern,
  'must be the name of a model: at most 200 letters, digits and . _ : @ / + -, such as openclaw',
)

/** One of several shapes, selected by `type`. Validation reports the faults of the selected shape only. */
const Tagged = <S extends TSchema[]>(shapes: [...S], description?: string) =>
  Type.Unsafe<Static<S[number]>>({
    type: 'object',
    discriminator: { propertyName: 'type' },
    oneOf: shapes,
    required: ['type'],
    ...(description && { description }),
  })

/** The name of a function that a client offers to the model. */
export const FunctionName = Type.String({
  minLength: 1,
  maxLength: 64,
  ...textRule('^[a-zA-Z0-9_-]+$', 'must have only letters, digits, _ and -'),
})

const callId = Type.String({ minLength: 1, maxLength: 64 })
const status = OptionalOrNull(OneOf(['in_progress', 'completed', 'incomplete']))
const id = OptionalOrNull(Type.String())

const InputText = Type.Object({ type: Type.Literal('input_text'), text: Type.String() }, { $id: 'InputText' })
const InputImage = Type.Object(
  {
    type: Type.Literal('input_image'),
    image_url: OptionalOrNull(
      Type.String({ description: 'A `data:` URL (PNG, JPEG, GIF, WebP, HEIC, HEIF; up to 10 MB) or an http(s) URL.' }),
    ),
    file_id: OptionalOrNull(Type.String()),
    detail: OptionalOrNull(OneOf(['low', 'high', 'auto', 'original'])),
  },
  { $id: 'InputImage' },
)
const InputFile = Type.Object(
  {
    type: Type.Literal('input_file'),
    filename: OptionalOrNull(Type.String()),
    file_data: OptionalOrNull(
      Type.String({ description: 'A `data:` URL or bare base64 (text, Markdown, HTML, CSV, JSON, PDF; up to 5 MB).' }),
    ),
    file_url: OptionalOrNull(Type.String()),
    file_id: OptionalOrNull(Type.String()),
  },
  { $id: 'InputFile' },
)
const OutputText = Type.Object({ type: Type.Literal('output_text'), text: Type.String() }, { $id: 'InputOutputText' })
const Refusal = Type.Object({ type: Type.Literal('refusal'), refusal: Type.String() }, { $id: 'InputRefusal' })

/** Parts of the format that an agent does not accept: gateway-request.ts refuses them with a reason. */
const OtherPart = Type.Object({ type: OneOf(['input_audio', 'input_video']) }, { $id: 'InputOtherPart' })

const ContentPart = Tagged([InputText, InputImage, InputFile, OutputText, Refusal, OtherPart])
export type ContentPart = Static<typeof ContentPart>

const MessageItem = Type.Object(
  {
    type: Type.Literal('message', { description: 'May be left out.' }),
    id,
    role: OneOf(['user', 'assistant', 'system', 'developer']),
    content: Type.Union([Type.String(), Type.Array(ContentPart)]),
    phase: OptionalOrNull(OneOf(['commentary', 'final_answer'])),
    status,
  },
  { $id: 'InputMessage' },
)
const FunctionCallItem = Type.Object(
  {
    type: Type.Literal('function_call'),
    id,
    call_id: callId,
    name: FunctionName,
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
/** The items of a checked request: request.ts has refused all others. */
export type InputItem = Exclude<Static<typeof InputItem>, Static<typeof OtherItem>>

/** The content parts of an item, or none when its content is a text. */
export function contentParts(item: InputItem): ContentPart[] {
  const content = item.type === 'message' ? item.content : item.type === 'function_call_output' ? item.output : []
  return typeof content === 'string' ? [] : content
}

const ToolParam = Type.Object({
  type: Type.String({ description: '`function`. The agent has its own tools besides.' }),
  name: Type.Optional(FunctionName),
  description: OptionalOrNull(Type.String()),
  parameters: OptionalOrNull(Type.Record(Type.String(), Type.Unknown())),
  strict: OptionalOrNull(Type.Boolean()),
})

const ToolChoiceParam = Type.Union([
  OneOf(['none', 'auto', 'required']),
  Type.Object({
    type: Type.String({ description: '`function` with its `name`, or `allowed_tools`.' }),
    name: Type.Optional(FunctionName),
    mode: Type.Optional(OneOf(['none', 'auto', 'required'])),
    tools: Type.Optional(Type.Array(Type.Object({ type: Type.String(), name: Type.Optional(Type.String()) }))),
  }),
])

export const Metadata = Type.Record(Type.String({ maxLength: 64 }), Type.String({ maxLength: 512 }), {
  maxProperties: 16,
})

/**
 * The body of `POST …/responses`. It names every field of the format, so that request.ts can refuse the ones without
 * support with a reason. docs/responses.md lists the treatment of each.
 */
export const CreateResponse = Type.Object(
  {
    model: Type.String({
      ...modelName,
      description:
        '`openclaw` for the model of the instance, or any model of its provider, as `<model>` or `<provider>/<model>`.',
    }),
    temperature: OptionalOrNull(Type.Number({ minimum: 0, maximum: 2 })),
    top_p: OptionalOrNull(Type.Number({ minimum: 0, maximum: 1 })),
    presence_penalty: OptionalOrNull(Type.Number({ minimum: -2, maximum: 2 })),
    frequency_penalty: OptionalOrNull(Type.Number({ minimum: -2, maximum: 2 })),
    top_logprobs: OptionalOrNull(Type.Integer({ minimum: 0, maximum: 20 })),
    parallel_tool_calls: OptionalOrNull(Type.Boolean()),
    metadata: OptionalOrNull(Metadata),
    store: OptionalOrNull(Type.Boolean({ description: 'Whether the response can be read later. True by default.' })),
    service_tier: OptionalOrNull(Type.String()),
    stream: OptionalOrNull(Type.Boolean({ description: 'Whether the answer comes as server-sent events.' })),
    input: Type.Union([Type.String(), Type.Array(InputItem)], {
      description: 'Your message: a text, or a list of items.',
    }),
    instructions: OptionalOrNull(Type.String({ description: 'Added to the agent’s system prompt for this turn.' })),
    previous_response_id: OptionalOrNull(
      Type.String({ description: 'Must be the latest response of the session in the path.' }),
    ),
    tools: OptionalOrNull(Type.Array(ToolParam, { maxItems: 128 })),
    tool_choice: OptionalOrNull(ToolChoiceParam),
    max_output_tokens: OptionalOrNull(Type.Integer({ minimum: 16 })),
    text: OptionalOrNull(
      Type.Object({
        format: OptionalOrNull(Type.Object({ type: Type.String({ description: 'Only `text`.' }) })),
        verbosity: OptionalOrNull(Type.String()),
      }),
    ),
    reasoning: OptionalOrNull(Type.Object({})),
    truncation: OptionalOrNull(OneOf(['auto', 'disabled'])),
    include: OptionalOrNull(Type.Array(Type.String())),
    stream_options: OptionalOrNull(Type.Object({ include_obfuscation: OptionalOrNull(Type.Boolean()) })),
    background: OptionalOrNull(Type.Boolean()),
    max_tool_calls: OptionalOrNull(Type.Integer({ minimum: 1 })),
    safety_identifier: OptionalOrNull(Type.String()),
    prompt_cache_key: OptionalOrNull(Type.String()),
    prompt_cache_retention: OptionalOrNull(Type.String()),
    user: OptionalOrNull(Type.String()),
    conversation: Type.Optional(Type.Unknown()),
    prompt: Type.Optional(Type.Unknown()),
    context_management: Type.Optional(Type.Unknown()),
  },
  {
    $id: 'CreateResponse',
    ...closed,
    description:
      'The Responses format. A field that the agent cannot honour is a 400 that names the field. Some hints ' +
      'are accepted without effect. docs/responses.md has the table of all fields.',
    examples: [{ model: 'openclaw', input: 'What files are in the current directory?' }],
  },
)
export type CreateResponse = Static<typeof CreateResponse>

/** The fields of the schema: request.ts refuses all others. */
export const responseFields: ReadonlySet<string> = new Set(Object.keys(CreateResponse.properties))
