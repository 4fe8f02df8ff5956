import type { ContentPart, CreateResponse, InputItem } from '#api/responses/format/request-schema.ts'
import { AppError } from '#platform/errors.ts'
import { type ChatMessage, type ChatPart, type CreateChatCompletion, chatFields } from './completion-schema.ts'

const refuse = (param: string, why: string) => new AppError('invalid', `${param}: ${why}`, { param })

/** What would change the answer or bound it, cannot be honoured, and is not among the fields of a response. */
const refused: [keyof CreateChatCompletion, isMeant: (value: unknown) => boolean, why: string][] = [
  ['n', (value) => value !== 1, 'an agent gives one answer; only 1 is taken.'],
  ['stop', (value) => !Array.isArray(value) || value.length > 0, 'an agent’s model is not told where to stop.'],
  ['logprobs', (value) => value === true, 'an agent does not tell probabilities; only false is taken.'],
  ['logit_bias', (value) => Object.keys(value as object).length > 0, 'an agent’s model is not told it.'],
  ['modalities', (value) => (value as string[]).some((one) => one !== 'text'), 'an agent answers in text.'],
  ['audio', () => true, 'an agent answers in text.'],
  ['functions', () => true, 'use tools.'],
  ['function_call', () => true, 'use tool_choice.'],
  ['web_search_options', () => true, 'an agent searches with its own tools.'],
]

function contentPart(part: ChatPart, param: string): ContentPart {
  const { type, text, refusal, image_url: image, file } = part
  if (type === 'text' && text !== undefined) return { type: 'input_text', text }
  if (type === 'refusal' && refusal !== undefined) return { type: 'refusal', refusal }
  if (type === 'image_url' && image) return { type: 'input_image', image_url: image.url }
  if (type === 'file' && file) return { type: 'input_file', ...file }
  throw refuse(param, 'must be a text, an image_url or a file part, with what its type says.')
}

function itemsOf({ role, content, tool_calls: calls, tool_call_id: callId }: ChatMessage, at: number): InputItem[] {
  const read =
    typeof content === 'string'
      ? content
      : (content ?? []).map((part, place) => contentPart(part, `messages.${at}.content.${place}`))
  if (role === 'tool') {
    if (callId === undefined) throw refuse(`messages.${at}.tool_call_id`, 'is missing.')
    return [{ type: 'function_call_output', call_id: callId, output: read }]
  }
  const called = (calls ?? []).map((call, place): InputItem => {
    if (!call.function) throw refuse(`messages.${at}.tool_calls.${place}`, 'must be the call of a function.')
    return { type: 'function_call', call_id: call.id, ...call.function }
  })
  return read.length > 0 || called.length === 0 ? [{ type: 'message', role, content: read }, ...called] : called
}

/** How a field of a response is called in this format. */
const names: Partial<Record<string, string>> = {
  'text.format': 'response_format',
  'tool_choice.name': 'tool_choice.function.name',
}

/**
 * The request as one for a response. `inWords` brings the refusal of a field back to what it is called here. Throws
 * AppError invalid that names the field which cannot be honoured.
 */
export function readChatRequest(body: CreateChatCompletion): {
  request: CreateResponse
  toChatError(error: unknown): unknown
} {
  const unknown = Object.keys(body).find((name) => !chatFields.has(name))
  if (unknown !== undefined) throw refuse(unknown.slice(0, 100), 'is not a field that this endpoint knows.')
  for (const [name, isMeant, why] of refused) {
    const value = body[name] ?? null
    if (value !== null && isMeant(value)) throw refuse(name, why)
  }
  const { model, temperature, top_p, presence_penalty, frequency_penalty, top_logprobs, parallel_tool_calls } = body
  /** For each item, the message that it comes from. */
  const origins: number[] = []
  const input = body.messages.flatMap((message, at) => {
    const items = itemsOf(message, at)
    for (const _item of items) origins.push(at)
    return items
  })
  const request: CreateResponse = {
    model,
    input,
    tools: body.tools?.map(({ type, function: one }) => ({ type, ...one })),
    tool_choice: choiceOf(body.tool_choice),
    max_output_tokens: body.max_completion_tokens ?? body.max_tokens,
    text: body.response_format && { format: body.response_format },
    ...{ temperature, top_p, presence_penalty, frequency_penalty, top_logprobs, parallel_tool_calls },
  } as CreateResponse
  return {
    request,
    toChatError(error) {
      if (!(error instanceof AppError) || error.param === undefined) return error
      const param =
        names[error.param] ??
        error.param
          .replace(/^input\.(\d+)/, (_, at: string) => `messages.${origins[Number(at)]}`)
          .replace(/^input$/, 'messages')
          .replace(/\.output\./, '.content.')
          .replace(/\.call_id$/, '.tool_call_id')
      return new AppError(error.kind, error.message.replace(error.param, param), { cause: error, param })
    },
  }
}

/** `{"type": "function", "function": {"name"}}` and `{"type": "allowed_tools", "allowed_tools": {…}}` without the nesting. */
function choiceOf(choice: CreateChatCompletion['tool_choice']): CreateResponse['tool_choice'] {
  if (typeof choice !== 'object' || choice === null) return choice
  const { type, function: named, allowed_tools: allowed } = choice
  if (type !== 'allowed_tools') return { ...named, type }
  return { ...allowed, tools: allowed?.tools?.map((tool) => ({ ...tool.function, type: tool.type })) ?? [], type }
}
