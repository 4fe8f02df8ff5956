import { type Static, Type } from '@sinclair/typebox'
import { always } from '#api/responses/format/response-schema.ts'
import { Nullable, OneOf } from '#platform/typebox.ts'

// These schemas allow no other fields, because the tests validate every completion and chunk with them.
const exact = { additionalProperties: false } as const

const Arguments = Type.String({ description: 'The arguments, as JSON.' })
const FunctionName = Type.String({ description: 'The name of your function.' })

const ToolCall = Type.Object(
  {
    id: Type.String({ description: 'The `tool_call_id` of the message with the result.' }),
    type: always('function'),
    function: Type.Object(
      { name: FunctionName, arguments: Arguments },
      { ...exact, description: 'The function that is called.' },
    ),
  },
  exact,
)

const Count = (description: string) => Type.Integer({ description })

export const ChatUsage = Type.Object(
  {
    prompt_tokens: Count('Tokens that the model read.'),
    completion_tokens: Count('Tokens that the model wrote.'),
    total_tokens: Count('All tokens.'),
    prompt_tokens_details: Type.Object(
      { cached_tokens: Count('Those that it read from its cache.'), audio_tokens: always(0) },
      { ...exact, description: 'Parts of `prompt_tokens`.' },
    ),
    completion_tokens_details: Type.Object(
      {
        reasoning_tokens: Count('Those that it wrote to think.'),
        audio_tokens: always(0),
        accepted_prediction_tokens: always(0),
        rejected_prediction_tokens: always(0),
      },
      { ...exact, description: 'Parts of `completion_tokens`.' },
    ),
  },
  { $id: 'ChatUsage', ...exact, description: 'The tokens of the call; absent when they are unknown.' },
)
export type ChatUsage = Static<typeof ChatUsage>

const FinishReason = OneOf(
  ['stop', 'length', 'tool_calls'],
  'Why the answer ends: it is complete, it has the largest length, or your tools are called.',
)
export type FinishReason = Static<typeof FinishReason>

const Id = Type.String({ description: 'The id of the answer. It cannot be read again.' })
const Created = Type.Integer({ description: 'Unix time in seconds.' })
const ModelName = Type.String({ description: 'The model as you named it.' })
const alwaysNull = Type.Null({ description: 'Always null.' })

export const ChatCompletion = Type.Object(
  {
    id: Id,
    object: always('chat.completion'),
    created: Created,
    model: ModelName,
    choices: Type.Array(
      Type.Object(
        {
          index: always(0),
          message: Type.Object(
            {
              role: always('assistant'),
              content: Nullable(Type.String({ description: 'The text; null when there is none.' })),
              refusal: alwaysNull,
              annotations: Type.Array(Type.Unknown(), {
                maxItems: 0,
                description: 'Always empty: an agent makes no annotations.',
              }),
              tool_calls: Type.Optional(
                Type.Array(ToolCall, { minItems: 1, description: 'The calls of your functions, if there are any.' }),
              ),
            },
            { ...exact, description: 'What the agent says.' },
          ),
          logprobs: alwaysNull,
          finish_reason: FinishReason,
        },
        exact,
      ),
      { minItems: 1, maxItems: 1, description: 'The answer: always one.' },
    ),
    usage: Type.Optional(ChatUsage),
    service_tier: always('default'),
    system_fingerprint: alwaysNull,
  },
  {
    $id: 'ChatCompletion',
    ...exact,
    description: 'The answer of an agent, in the Chat Completions format.',
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
    role: Type.Optional(always('assistant')),
    content: Type.Optional(Type.String({ description: 'The next piece of the text.' })),
    refusal: Type.Optional(alwaysNull),
    tool_calls: Type.Optional(
      Type.Array(
        Type.Object(
          {
            index: Type.Integer({ description: 'The number of the call.' }),
            id: Type.Optional(Type.String({ description: 'The id of the call, in its first chunk.' })),
            type: Type.Optional(always('function')),
            function: Type.Object(
              {
                name: Type.Optional(FunctionName),
                arguments: Type.String({ description: 'The next piece of the arguments.' }),
              },
              { ...exact, description: 'The function that is called.' },
            ),
          },
          exact,
        ),
        { minItems: 1, maxItems: 1, description: 'The next piece of a call of your function.' },
      ),
    ),
  },
  { ...exact, description: 'What is new since the chunk before.' },
)
export type ChatDelta = Static<typeof ChatDelta>

/** A chunk of a streamed completion. */
export const ChatChunk = Type.Object(
  {
    id: Id,
    object: always('chat.completion.chunk'),
    created: Created,
    model: ModelName,
    choices: Type.Array(
      Type.Object(
        {
          index: always(0),
          delta: ChatDelta,
          logprobs: alwaysNull,
          finish_reason: Nullable({ ...FinishReason, description: `${FinishReason.description} null before the end.` }),
        },
        exact,
      ),
      { maxItems: 1, description: 'One, or none in the chunk with the `usage`.' },
    ),
    usage: Type.Optional(
      Type.Union([ChatUsage, Type.Null()], { description: 'With `include_usage`: null before the last chunk.' }),
    ),
    service_tier: always('default'),
    system_fingerprint: alwaysNull,
  },
  {
    $id: 'ChatCompletionChunk',
    ...exact,
    description:
      'With `"stream": true`: each line `data:` has this JSON, and the last one is `data: [DONE]`. A turn that fails while ' +
      'it runs ends with `data: {"error": …}` and without `[DONE]`.',
    examples: [
      {
        id: 'chatcmpl-5f0c9a3e7b214d6f8a1b2c3d4e5f6071',
        object: 'chat.completion.chunk',
        created: 1771066800,
        model: 'openclaw',
        choices: [{ index: 0, delta: { content: 'README.md and' }, logprobs: null, finish_reason: null }],
        service_tier: 'default',
        system_fingerprint: null,
      },
    ],
  },
)
export type ChatChunk = Static<typeof ChatChunk>

export const chatCompletionAnswers = {
  200: {
    description: 'The answer of the agent, as JSON or, with `"stream": true`, as a stream.',
    content: { 'application/json': { schema: ChatCompletion }, 'text/event-stream': { schema: ChatChunk } },
  },
}
