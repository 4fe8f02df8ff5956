import { type Static, Type } from '@sinclair/typebox'
import { FunctionName, Metadata, modelName, OptionalOrNull } from '#api/responses/format/request-schema.ts'
import { closed } from '#http/client-schema.ts'
import { OneOf } from '#http/validation.ts'

const Part = Type.Object({
  type: Type.String({ description: '`text`, `image_url` or `file`.' }),
  text: Type.Optional(Type.String()),
  refusal: Type.Optional(Type.String()),
  image_url: Type.Optional(Type.Object({ url: Type.String(), detail: Type.Optional(Type.String()) })),
  file: Type.Optional(
    Type.Object({
      file_data: Type.Optional(Type.String()),
      filename: Type.Optional(Type.String()),
      file_id: Type.Optional(Type.String()),
    }),
  ),
})
export type ChatPart = Static<typeof Part>

const ToolCall = Type.Object({
  id: Type.String({ minLength: 1, maxLength: 64 }),
  type: Type.String(),
  function: Type.Optional(Type.Object({ name: Type.String(), arguments: Type.String() })),
})

const ChatMessage = Type.Object({
  role: OneOf(['system', 'developer', 'user', 'assistant', 'tool']),
  content: OptionalOrNull(Type.Union([Type.String(), Type.Array(Part)])),
  name: OptionalOrNull(Type.String()),
  refusal: OptionalOrNull(Type.String()),
  tool_calls: OptionalOrNull(Type.Array(ToolCall)),
  tool_call_id: Type.Optional(Type.String({ minLength: 1, maxLength: 64 })),
})
export type ChatMessage = Static<typeof ChatMessage>

const ChatTool = Type.Object({
  type: Type.String({ description: '`function`.' }),
  function: Type.Optional(
    Type.Object({
      name: FunctionName,
      description: OptionalOrNull(Type.String()),
      parameters: OptionalOrNull(Type.Record(Type.String(), Type.Unknown())),
      strict: OptionalOrNull(Type.Boolean()),
    }),
  ),
})

const ChosenFunction = Type.Object({ name: Type.Optional(Type.String()) })
const ChatToolChoice = Type.Object({
  type: Type.String({ description: '`function` or `allowed_tools`.' }),
  function: Type.Optional(ChosenFunction),
  allowed_tools: Type.Optional(
    Type.Object({
      mode: Type.Optional(OneOf(['none', 'auto', 'required'])),
      tools: Type.Optional(
        Type.Array(
          Type.Object({
            type: Type.String(),
            function: Type.Optional(ChosenFunction),
          }),
        ),
      ),
    }),
  ),
})

/** The body of `POST …/chat/completions`. docs/responses.md lists the treatment of each field. */
export const CreateChatCompletion = Type.Object(
  {
    model: Type.String({ ...modelName, description: 'As for responses.' }),
    messages: Type.Array(ChatMessage, {
      minItems: 1,
      description: 'The whole conversation: the agent remembers no earlier call.',
    }),
    stream: OptionalOrNull(Type.Boolean()),
    stream_options: OptionalOrNull(
      Type.Object({
        include_usage: OptionalOrNull(Type.Boolean()),
        include_obfuscation: OptionalOrNull(Type.Boolean()),
      }),
    ),
    tools: OptionalOrNull(Type.Array(ChatTool, { maxItems: 128 })),
    tool_choice: OptionalOrNull(Type.Union([OneOf(['none', 'auto', 'required']), ChatToolChoice])),
    parallel_tool_calls: OptionalOrNull(Type.Boolean()),
    max_completion_tokens: OptionalOrNull(Type.Integer({ minimum: 1 })),
    max_tokens: OptionalOrNull(Type.Integer({ minimum: 1 })),
    temperature: OptionalOrNull(Type.Number({ minimum: 0, maximum: 2 })),
    top_p: OptionalOrNull(Type.Number({ minimum: 0, maximum: 1 })),
    response_format: OptionalOrNull(Type.Object({ type: Type.String({ description: 'Only `text`.' }) })),
    n: OptionalOrNull(Type.Integer({ minimum: 1 })),
    stop: OptionalOrNull(Type.Union([Type.String(), Type.Array(Type.String())])),
    presence_penalty: OptionalOrNull(Type.Number({ minimum: -2, maximum: 2 })),
    frequency_penalty: OptionalOrNull(Type.Number({ minimum: -2, maximum: 2 })),
    logprobs: OptionalOrNull(Type.Boolean()),
    top_logprobs: OptionalOrNull(Type.Integer({ minimum: 0, maximum: 20 })),
    logit_bias: OptionalOrNull(Type.Record(Type.String(), Type.Number())),
    modalities: OptionalOrNull(Type.Array(Type.String())),
    audio: Type.Optional(Type.Unknown()),
    functions: Type.Optional(Type.Unknown()),
    function_call: Type.Optional(Type.Unknown()),
    web_search_options: Type.Optional(Type.Unknown()),
    metadata: OptionalOrNull(Metadata),
    store: OptionalOrNull(Type.Boolean()),
    seed: OptionalOrNull(Type.Integer()),
    user: OptionalOrNull(Type.String()),
    safety_identifier: OptionalOrNull(Type.String()),
    prompt_cache_key: OptionalOrNull(Type.String()),
    prompt_cache_retention: OptionalOrNull(Type.String()),
    reasoning_effort: OptionalOrNull(Type.String()),
    verbosity: OptionalOrNull(Type.String()),
    service_tier: OptionalOrNull(Type.String()),
    prediction: Type.Optional(Type.Unknown()),
  },
  {
    $id: 'CreateChatCompletion',
    ...closed,
    description:
      'The Chat Completions format. A field that the agent cannot honour is a 400 that names the field. Some hints ' +
      'are accepted without effect. docs/responses.md has the table of all fields.',
    examples: [
      { model: 'openclaw', messages: [{ role: 'user', content: 'What files are in the current directory?' }] },
    ],
  },
)
export type CreateChatCompletion = Static<typeof CreateChatCompletion>

/** The fields of the schema: request.ts refuses all others. */
export const chatFields: ReadonlySet<string> = new Set(Object.keys(CreateChatCompletion.properties))
