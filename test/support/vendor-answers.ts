import type { ModelProvider } from '#database/schema.ts'

/** An answer in the form of its vendor, and what it says of its usage. */
export interface VendorAnswer {
  name: string
  provider: ModelProvider
  path: string
  type: 'text/event-stream; charset=utf-8' | 'application/json'
  body: string
  model: string
  inputTokens: number
  cacheReadTokens: number
  cacheWriteTokens: number
  outputTokens: number
  reasoningTokens: number
}

const events = (...data: (({ type?: string } & Record<string, unknown>) | string)[]) =>
  data
    .map((item) => {
      if (typeof item === 'string') return `data: ${item}\n\n`
      return `${item.type === undefined ? '' : `event: ${item.type}\n`}data: ${JSON.stringify(item)}\n\n`
    })
    .join('')
const stream = 'text/event-stream; charset=utf-8'
const json = 'application/json'
const none = { cacheReadTokens: 0, cacheWriteTokens: 0, reasoningTokens: 0 }

/** Text that looks like a usage, in other alphabets too: none of it counts. */
const tricky = '"usage":{"input_tokens":9,"output_tokens":9}} \\" data: {"usage":1}\n\ndata: 日本語 🦀'

const messageStart = {
  type: 'message_start',
  message: {
    model: 'claude-sonnet-4-5-20250929',
    id: 'msg_01XFDUDYJgAACzvnptvVoYEL',
    type: 'message',
    role: 'assistant',
    content: [],
    stop_reason: null,
    usage: {
      input_tokens: 3,
      cache_creation_input_tokens: 1200,
      cache_read_input_tokens: 20_000,
      cache_creation: { ephemeral_5m_input_tokens: 200, ephemeral_1h_input_tokens: 1000 },
      output_tokens: 1,
      service_tier: 'standard',
    },
  },
}
const textDelta = { type: 'content_block_delta', index: 0, delta: { type: 'text_delta', text: tricky } }

/** What Anthropic sends before the output is complete. */
export const cutAnthropicStream = events(
  messageStart,
  { type: 'content_block_start', index: 0, content_block: { type: 'text', text: '' } },
  { type: 'ping' },
  textDelta,
)

const responsesUsage = {
  input_tokens: 75,
  input_tokens_details: { cached_tokens: 32 },
  output_tokens: 1186,
  output_tokens_details: { reasoning_tokens: 1024 },
  total_tokens: 1261,
}
const response = (status: string, usage: object | null) => ({
  id: 'resp_67c9fdcecf488190bdd9a0409de3a1ec07b8b0ad4e5eb654',
  object: 'response',
  status,
  instructions: tricky,
  model: 'gpt-5-2025-08-07',
  output: [{ type: 'message', content: [{ type: 'output_text', text: tricky, usage: { input_tokens: 1 } }] }],
  usage,
  user: null,
})
const chatChunk = (choices: object[], usage: object | null) => ({
  id: 'chatcmpl-123',
  object: 'chat.completion.chunk',
  model: 'gpt-4o-mini-2024-07-18',
  choices,
  usage,
})
const chatUsage = {
  prompt_tokens: 1117,
  completion_tokens: 46,
  total_tokens: 1163,
  prompt_tokens_details: { cached_tokens: 1024, audio_tokens: 0 },
  completion_tokens_details: { reasoning_tokens: 6, audio_tokens: 0 },
}
const geminiChunk = (text: string, usageMetadata: object) => ({
  candidates: [{ content: { parts: [{ text }], role: 'model' }, index: 0 }],
  usageMetadata,
  modelVersion: 'gemini-2.5-flash',
  responseId: 'mAitaLmkHPPlz7IPvtfUqQ4',
})
const geminiChunks = [
  geminiChunk(tricky, { promptTokenCount: 100, totalTokenCount: 140, thoughtsTokenCount: 40 }),
  geminiChunk('more', {
    promptTokenCount: 100,
    cachedContentTokenCount: 60,
    candidatesTokenCount: 10,
    thoughtsTokenCount: 40,
    totalTokenCount: 150,
    promptTokensDetails: [{ modality: 'TEXT', tokenCount: 100 }],
  }),
] as const
const gemini = {
  provider: 'gemini',
  model: 'gemini-2.5-flash',
  inputTokens: 100,
  cacheReadTokens: 60,
  cacheWriteTokens: 0,
  outputTokens: 50,
  reasoningTokens: 40,
} as const
const anthropic = {
  provider: 'anthropic',
  path: '/v1/messages',
  model: 'claude-sonnet-4-5-20250929',
  inputTokens: 21_203,
  cacheReadTokens: 20_000,
  cacheWriteTokens: 1200,
  outputTokens: 300,
} as const
const ofResponses = {
  provider: 'openai',
  path: '/v1/responses',
  model: 'gpt-5-2025-08-07',
  inputTokens: 75,
  cacheReadTokens: 32,
  cacheWriteTokens: 0,
  outputTokens: 1186,
  reasoningTokens: 1024,
} as const
const ofChat = {
  provider: 'openai',
  path: '/v1/chat/completions',
  model: 'gpt-4o-mini-2024-07-18',
  inputTokens: 1117,
  cacheReadTokens: 1024,
  cacheWriteTokens: 0,
  outputTokens: 46,
  reasoningTokens: 6,
} as const

/** Answers in the forms of the vendors' documents. */
export const vendorAnswers: readonly VendorAnswer[] = [
  {
    ...anthropic,
    name: 'Anthropic, streamed',
    type: stream,
    reasoningTokens: 0,
    body:
      cutAnthropicStream +
      events(
        { type: 'content_block_stop', index: 0 },
        { type: 'message_delta', delta: { stop_reason: 'end_turn' }, usage: { output_tokens: 300 } },
        { type: 'message_stop' },
      ),
  },
  {
    ...anthropic,
    name: 'Anthropic',
    type: json,
    reasoningTokens: 120,
    body: JSON.stringify(
      {
        ...messageStart.message,
        content: [{ type: 'text', text: tricky }],
        usage: {
          ...messageStart.message.usage,
          output_tokens: 300,
          output_tokens_details: { thinking_tokens: 120 },
        },
      },
      null,
      2,
    ),
  },
  {
    ...ofResponses,
    name: 'OpenAI responses, streamed',
    type: stream,
    body: events(
      { type: 'response.created', response: response('in_progress', null) },
      { type: 'response.output_text.delta', delta: tricky },
      { type: 'response.completed', response: response('completed', responsesUsage) },
    ),
  },
  {
    ...ofResponses,
    name: 'OpenAI responses',
    type: json,
    body: JSON.stringify(response('completed', responsesUsage)),
  },
  {
    ...ofChat,
    name: 'OpenAI chat completions, streamed',
    type: stream,
    body: events(
      chatChunk([{ index: 0, delta: { role: 'assistant', content: tricky } }], null),
      chatChunk([{ index: 0, delta: {}, finish_reason: 'stop' }], null),
      chatChunk([], chatUsage),
      '[DONE]',
    ),
  },
  { ...ofChat, name: 'OpenAI chat completions', type: json, body: JSON.stringify(chatChunk([], chatUsage)) },
  {
    ...none,
    name: 'OpenAI embeddings',
    provider: 'openai',
    path: '/v1/embeddings',
    type: json,
    body: JSON.stringify({
      object: 'list',
      data: [{ object: 'embedding', index: 0, embedding: [-0.0069, 2.4e-5, 1] }],
      model: 'text-embedding-3-small',
      usage: { prompt_tokens: 8, total_tokens: 8 },
    }),
    model: 'text-embedding-3-small',
    inputTokens: 8,
    outputTokens: 0,
  },
  {
    ...gemini,
    name: 'Gemini, streamed as events',
    path: '/v1beta/models/gemini-2.5-flash:streamGenerateContent',
    type: stream,
    body: events(...geminiChunks).replaceAll('\n', '\r\n'),
  },
  {
    ...gemini,
    name: 'Gemini, streamed as an array',
    path: '/v1beta/models/gemini-2.5-flash:streamGenerateContent',
    type: json,
    body: `[${geminiChunks.map((chunk) => JSON.stringify(chunk, null, 2)).join(',\r\n')}]`,
  },
  {
    ...gemini,
    name: 'Gemini',
    path: '/v1beta/models/gemini-2.5-flash:generateContent',
    type: json,
    body: JSON.stringify(geminiChunks[1], null, 2),
  },
]
