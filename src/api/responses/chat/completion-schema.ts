import { type Static, Type } from '@sinclair/typebox'
import { Nullable, OneOf } from '#http/validation.ts'

// These schemas allow no other fields: the tests validate every completion and chunk with them.
const exact = { additionalProperties: false } as const

const ToolCall = Type.Object(
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
              tool_calls: Type.Optional(Type.Array(ToolCall, { minItems: 1 })),
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

const ChatDelta = Type.Object(
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
export type ChatDelta = Static<typeof ChatDelta>

/** A chunk of a streamed completion. */
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
          delta: ChatDelta,
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
export type ChatChunk = Static<typeof ChatChunk>

const Chunks = Type.String({
  description:
    'With `"stream": true`: chunks of the format (`chat.completion.chunk`), each a line `data:` of JSON, then ' +
    '`data: [DONE]`. A turn that fails while it runs ends with `data: {"error": …}` and without `[DONE]`.',
  examples: ['data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"README.md"}}]}\n\n'],
})

export const chatCompletionAnswers = {
  200: {
    description: 'The answer of the agent, as JSON or, with `"stream": true`, as a stream.',
    content: { 'application/json': { schema: ChatCompletion }, 'text/event-stream': { schema: Chunks } },
  },
}
