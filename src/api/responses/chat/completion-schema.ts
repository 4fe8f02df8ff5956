import { type Static, type TSchema, Type } from '@sinclair/typebox'
import { Metadata } from '#api/responses/format/request-schema.ts'
import { Nullable, OneOf } from '#http/validation.ts'
import { modelPattern } from '#openclaw/model.ts'

const Maybe = <S extends TSchema>(schema: S) => Type.Optional(Type.Union([schema, Type.Null()]))
const exact = { additionalProperties: false } as const

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
  content: Maybe(Type.Union([Type.String(), Type.Array(Part)])),
  name: Maybe(Type.String()),
  refusal: Maybe(Type.String()),
  tool_calls: Maybe(Type.Array(ToolCall)),
  tool_call_id: Type.Optional(Type.String({ minLength: 1, maxLength: 64 })),
})
export type ChatMessage = Static<typeof ChatMessage>

const ChatTool = Type.Object({
  type: Type.String({ description: '`function`.' }),
  function: Type.Optional(
    Type.Object({
      name: Type.String({ minLength: 1, maxLength: 64, pattern: '^[a-zA-Z0-9_-]+$' }),
      description: Maybe(Type.String()),
      parameters: Maybe(Type.Record(Type.String(), Type.Unknown())),
      strict: Maybe(Type.Boolean()),
    }),
  ),
})

const Named = Type.Object({ name: Type.Optional(Type.String()) })
const ChatToolChoice = Type.Object({
  type: Type.String({ description: '`function` or `allowed_tools`.' }),
  function: Type.Optional(Named),
  allowed_tools: Type.Optional(
    Type.Object({
      mode: Type.Optional(OneOf(['none', 'auto', 'required'])),
      tools: Type.Optional(
        Type.Array(
          Type.Object({
            type: Type.String(),
            function: Type.Optional(Named),
          }),
        ),
      ),
    }),
  ),
})

/** What `POST …/chat/completions` takes; how each field is treated is in docs/responses.md. */
export const CreateChatCompletion = Type.Object(
  {
    model: Type.String({ pattern: modelPattern, description: 'As for responses.' }),
    messages: Type.Array(ChatMessage, { minItems: 1, description: 'The whole conversation: nothing is remembered.' }),
    stream: Maybe(Type.Boolean()),
    stream_options: Maybe(
      Type.Object({ include_usage: Maybe(Type.Boolean()), include_obfuscation: Maybe(Type.Boolean()) }),
    ),
    tools: Maybe(Type.Array(ChatTool, { maxItems: 128 })),
    tool_choice: Maybe(Type.Union([OneOf(['none', 'auto', 'required']), ChatToolChoice])),
    parallel_tool_calls: Maybe(Type.Boolean()),
    max_completion_tokens: Maybe(Type.Integer({ minimum: 1 })),
    max_tokens: Maybe(Type.Integer({ minimum: 1 })),
    temperature: Maybe(Type.Number({ minimum: 0, maximum: 2 })),
    top_p: Maybe(Type.Number({ minimum: 0, maximum: 1 })),
    response_format: Maybe(Type.Object({ type: Type.String({ description: 'Only `text`.' }) })),
    n: Maybe(Type.Integer({ minimum: 1 })),
    stop: Maybe(Type.Union([Type.String(), Type.Array(Type.String())])),
    presence_penalty: Maybe(Type.Number({ minimum: -2, maximum: 2 })),
    frequency_penalty: Maybe(Type.Number({ minimum: -2, maximum: 2 })),
    logprobs: Maybe(Type.Boolean()),
    top_logprobs: Maybe(Type.Integer({ minimum: 0, maximum: 20 })),
    logit_bias: Maybe(Type.Record(Type.String(), Type.Number())),
    modalities: Maybe(Type.Array(Type.String())),
    audio: Type.Optional(Type.Unknown()),
    functions: Type.Optional(Type.Unknown()),
    function_call: Type.Optional(Type.Unknown()),
    web_search_options: Type.Optional(Type.Unknown()),
    metadata: Maybe(Metadata),
    store: Maybe(Type.Boolean()),
    seed: Maybe(Type.Integer()),
    user: Maybe(Type.String()),
    safety_identifier: Maybe(Type.String()),
    prompt_cache_key: Maybe(Type.String()),
    prompt_cache_retention: Maybe(Type.String()),
    reasoning_effort: Maybe(Type.String()),
    verbosity: Maybe(Type.String()),
    service_tier: Maybe(Type.String()),
    prediction: Type.Optional(Type.Unknown()),
  },
  {
    $id: 'CreateChatCompletion',
    additionalProperties: true,
    description:
      'The Chat Completions format. What the agent cannot honour is a 400 that names the field; some hints are taken without effect. The table of all fields is in docs/responses.md.',
    examples: [
      { model: 'openclaw', messages: [{ role: 'user', content: 'What files are in the current directory?' }] },
    ],
  },
)
export type CreateChatCompletion = Static<typeof CreateChatCompletion>

export const chatFields: ReadonlySet<string> = new Set(Object.keys(CreateChatCompletion.properties))

const CallOut = Type.Object(
  {
    id: Type.String(),
    type: Type.Literal('function'),
    function: Type.Object({ name: Type.String(), arguments: Type.String() }, exact),
  },
  exact,
)

export const ChatUsage = Type.Object(
  {
    prompt_tokens: Type.Integer(),
    completion_tokens: Type.Integer(),
    total_tokens: Type.Integer(),
    prompt_tokens_details: Type.Object({ cached_tokens: Type.Integer(), audio_tokens: Type.Literal(0) }, exact),
    completion_tokens_details: Type.Object(
      {
        reasoning_tokens: Type.Integer(),
        audio_tokens: Type.Literal(0),
        accepted_prediction_tokens: Type.Literal(0),
        rejected_prediction_tokens: Type.Literal(0),
      },
      exact,
    ),
  },
  exact,
)
export type ChatUsage = Static<typeof ChatUsage>

const FinishReason = OneOf(['stop', 'length', 'tool_calls'])
export type FinishReason = Static<typeof FinishReason>

export const ChatCompletion = Type.Object(
  {
    id: Type.String(),
    object: Type.Literal('chat.completion'),
    created: Type.Integer({ description: 'Unix time in seconds.' }),
    model: Type.String({ description: 'The model as you named it.' }),
    choices: Type.Array(
      Type.Object(
        {
          index: Type.Literal(0),
          message: Type.Object(
            {
              role: Type.Literal('assistant'),
              content: Nullable(Type.String()),
              refusal: Type.Null(),
              annotations: Type.Array(Type.Unknown(), { maxItems: 0 }),
              tool_calls: Type.Optional(Type.Array(CallOut, { minItems: 1 })),
            },
            exact,
          ),
          logprobs: Type.Null(),
          finish_reason: FinishReason,
        },
        exact,
      ),
      { minItems: 1, maxItems: 1 },
    ),
    usage: Type.Optional(ChatUsage),
    service_tier: Type.Literal('default'),
    system_fingerprint: Type.Null(),
  },
  {
    $id: 'ChatCompletion',
    ...exact,
    examples: [
      {
        id: 'chatcmpl-5f0c9a3e7b214d6f8a1b2c3d4e5f6071',
        object: 'chat.completion',
        created: 1771066800,
        model: 'openclaw',
        choices: [
          {
            index: 0,
            message: {
              role: 'assistant',
              content: 'README.md and package.json.',
              refusal: null,
              annotations: [],
            },
            logprobs: null,
            finish_reason: 'stop',
          },
        ],
        usage: {
          prompt_tokens: 42,
          completion_tokens: 8,
          total_tokens: 50,
          prompt_tokens_details: { cached_tokens: 0, audio_tokens: 0 },
          completion_tokens_details: {
            reasoning_tokens: 0,
            audio_tokens: 0,
            accepted_prediction_tokens: 0,
            rejected_prediction_tokens: 0,
          },
        },
        service_tier: 'default',
        system_fingerprint: null,
      },
    ],
  },
)
export type ChatCompletion = Static<typeof ChatCompletion>

const Delta = Type.Object(
  {
    role: Type.Optional(Type.Literal('assistant')),
    content: Type.Optional(Type.String()),
    refusal: Type.Optional(Type.Null()),
    tool_calls: Type.Optional(
      Type.Array(
        Type.Object(
          {
            index: Type.Integer(),
            id: Type.Optional(Type.String()),
            type: Type.Optional(Type.Literal('function')),
            function: Type.Object({ name: Type.Optional(Type.String()), arguments: Type.String() }, exact),
          },
          exact,
        ),
        { minItems: 1, maxItems: 1 },
      ),
    ),
  },
  exact,
)

/** One piece of a streamed completion. */
export const ChatChunk = Type.Object(
  {
    id: Type.String(),
    object: Type.Literal('chat.completion.chunk'),
    created: Type.Integer(),
    model: Type.String(),
    choices: Type.Array(
      Type.Object(
        {
          index: Type.Literal(0),
          delta: Delta,
          logprobs: Type.Null(),
          finish_reason: Type.Union([FinishReason, Type.Null()]),
        },
        exact,
      ),
      { maxItems: 1 },
    ),
    usage: Type.Optional(Type.Union([ChatUsage, Type.Null()])),
    service_tier: Type.Literal('default'),
    system_fingerprint: Type.Null(),
  },
  exact,
)

const Chunks = Type.String({
  description:
    'With `"stream": true`: pieces of the format (`chat.completion.chunk`), each a line `data:` of JSON, then `data: [DONE]`. A turn that fails under way ends with `data: {"error": …}` and without `[DONE]`.',
  examples: ['data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"README.md"}}]}\n\n'],
})

export const chatCompletionAnswers = {
  200: {
    description: 'The agent’s answer: whole, or as it comes with `"stream": true`.',
    content: { 'application/json': { schema: ChatCompletion }, 'text/event-stream': { schema: Chunks } },
  },
}
