import { type Static, type TSchema, Type } from '@sinclair/typebox'
import { Nullable, OneOf, textRule, Uri } from '#platform/typebox.ts'

/** More items than a client's conversation that is sent whole. */
export const maxItems = 2000
/** Maximum parts of one message, and items of the small lists of a request. */
export const maxParts = 256
export const maxTools = 128

/** A field that may be missing or null, with the same meaning. */
export const OptionalOrNull = <S extends TSchema>(schema: S) =>
  Type.Optional(
    'anyOf' in schema
      ? Type.Unsafe<Static<S> | null>({ ...schema, anyOf: [...(schema.anyOf as TSchema[]), Type.Null()] })
      : Nullable(schema),
  )

/** One of several shapes, selected by `type`. Validation reports only errors of the selected shape. */
const Tagged = <S extends TSchema[]>(shapes: [...S], description?: string) =>
  Type.Unsafe<Static<S[number]>>({
    type: 'object',
    discriminator: { propertyName: 'type' },
    oneOf: shapes,
    required: ['type'],
    ...(description && { description }),
  })

/** The name of a function offered to the model. */
export const FunctionName = Type.String({
  minLength: 1,
  maxLength: 64,
  ...textRule('^[a-zA-Z0-9_-]+$', 'must have only letters, digits, _ and -'),
  description: 'The name of the function: at most 64 letters, digits, _ and -.',
})
const callId = Type.String({ minLength: 1, maxLength: 64, description: 'The `call_id` of the call.' })
const status = OptionalOrNull(OneOf(['in_progress', 'completed', 'incomplete'], 'No effect.'))
const id = OptionalOrNull(
  Type.String({
    description: 'The id of the item. It identifies items that the session already has.',
  }),
)
const kind = <const T extends string>(name: T, note = '') =>
  Type.Literal(name, { description: `Always \`${name}\`.${note}` })
const noStoredFiles = OptionalOrNull(Type.String({ description: 'Refused: there are no stored files.' }))

const InputText = Type.Object(
  { type: kind('input_text'), text: Type.String({ description: 'The text.' }) },
  { $id: 'InputText' },
)
const InputImage = Type.Object(
  {
    type: kind('input_image'),
    image_url: OptionalOrNull(Uri('A `data:` URL (PNG, JPEG, GIF, WebP, HEIC, HEIF; up to 10 MB) or an http(s) URL.')),
    file_id: noStoredFiles,
    detail: OptionalOrNull(OneOf(['low', 'high', 'auto', 'original'], 'No effect.')),
  },
  { $id: 'InputImage' },
)
const InputFile = Type.Object(
  {
    type: kind('input_file'),
    filename: OptionalOrNull(Type.String({ description: 'The name of the file.' })),
    file_data: OptionalOrNull(
      Type.String({ description: 'A `data:` URL or bare base64 (text, Markdown, HTML, CSV, JSON, PDF; up to 5 MB).' }),
    ),
    file_url: OptionalOrNull(Uri('An http(s) URL, which OpenClaw fetches.')),
    file_id: noStoredFiles,
  },
  { $id: 'InputFile' },
)
const OutputText = Type.Object(
  { type: kind('output_text'), text: Type.String({ description: 'Text that the agent wrote earlier.' }) },
  { $id: 'InputOutputText' },
)
const Refusal = Type.Object(
  { type: kind('refusal'), refusal: Type.String({ description: 'Text by which a model refused earlier.' }) },
  { $id: 'InputRefusal' },
)

/** Parts of the format that an agent does not accept. gateway-request.ts refuses them with a reason. */
const OtherPart = Type.Object({ type: OneOf(['input_audio', 'input_video'], 'Refused.') }, { $id: 'InputOtherPart' })

const ContentPart = Tagged([InputText, InputImage, InputFile, OutputText, Refusal, OtherPart])
export type ContentPart = Static<typeof ContentPart>

const MessageItem = Type.Object(
  {
    type: kind('message', ' The server accepts a message without it.'),
    id,
    role: OneOf(
      ['user', 'assistant', 'system', 'developer'],
      'Who wrote it. `system` and `developer` become part of the system prompt of the model.',
    ),
    content: Type.Union([Type.String(), Type.Array(ContentPart, { maxItems: maxParts })], {
      description: 'A text, or a list of parts.',
    }),
    phase: OptionalOrNull(OneOf(['commentary', 'final_answer'], 'No effect.')),
    status,
  },
  { $id: 'InputMessage' },
)
const FunctionCallItem = Type.Object(
  {
    type: kind('function_call'),
    id,
    call_id: callId,
    name: FunctionName,
    arguments: Type.String({ description: 'The arguments, as JSON.' }),
    status,
  },
  { $id: 'InputFunctionCall' },
)
const FunctionCallOutputItem = Type.Object(
  {
    type: kind('function_call_output'),
    id,
    call_id: callId,
    output: Type.Union([Type.String(), Type.Array(ContentPart, { maxItems: maxParts })], {
      description: 'The result of your function: a text, or a list of parts. It reaches the model as text.',
    }),
    status,
  },
  { $id: 'InputFunctionCallOutput' },
)
const ReasoningItem = Type.Object({ type: kind('reasoning', ' It has no effect.'), id }, { $id: 'InputReasoning' })
const ItemReference = Type.Object(
  {
    type: kind('item_reference', ' The server accepts a reference without it.'),
    id: Type.String({ description: 'The id of an item of this session.' }),
  },
  { $id: 'InputItemReference' },
)
const CompactionItem = Type.Object(
  {
    type: kind('compaction'),
    id,
    encrypted_content: Type.String({
      maxLength: 10_485_760,
      description: 'The one that `POST …/responses/compact` answered for this instance.',
    }),
  },
  { $id: 'InputCompaction', description: 'The summary of an earlier conversation.' },
)

const otherItems = [
  ...['custom_tool_call', 'custom_tool_call_output', 'web_search_call', 'file_search_call'],
  ...['computer_call', 'computer_call_output', 'image_generation_call', 'code_interpreter_call', 'local_shell_call'],
  ...['local_shell_call_output', 'shell_call', 'shell_call_output', 'apply_patch_call', 'apply_patch_call_output'],
  ...['mcp_list_tools', 'mcp_approval_request', 'mcp_approval_response', 'mcp_call', 'tool_search_call'],
] as unknown as readonly ['file_search_call', 'web_search_call']
const OtherItem = Type.Object({ type: OneOf(otherItems, 'Refused.') }, { $id: 'InputOtherItem' })

/** An item of the input of a request. */
export const InputItem = Tagged([
  MessageItem,
  FunctionCallItem,
  FunctionCallOutputItem,
  ReasoningItem,
  ItemReference,
  CompactionItem,
  OtherItem,
])
type OpenedCompaction = Static<typeof CompactionItem> & { summary: string }
/** The items of a checked request: request.ts has refused all others, and opened the compactions. */
export type InputItem =
  | Exclude<Static<typeof InputItem>, Static<typeof OtherItem> | Static<typeof CompactionItem>>
  | OpenedCompaction

/** The content parts of an item, or none when its content is a text. */
export function contentParts(item: InputItem): ContentPart[] {
  const content = item.type === 'message' ? item.content : item.type === 'function_call_output' ? item.output : []
  return typeof content === 'string' ? [] : content
}
