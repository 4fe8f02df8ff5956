import type { ContentPart, InputItem } from '#api/responses/format/input-schema.ts'
import { invalidField, type RefusedField, refuseFields } from '#api/responses/format/invalid-field.ts'
import type { CreateResponse } from '#api/responses/format/request-schema.ts'
import { AppError } from '#errors/app-error.ts'
import { type ChatMessage, type ChatPart, type CreateChatCompletion, chatFields } from './request-schema.ts'

/** Fields that would change or limit the answer. An agent cannot honour them, and a response has no such field. */
const refusedFields: RefusedField<CreateChatCompletion>[] = [
  ['n', (value) => value !== 1, 'must be 1: an agent gives one answer.'],
  ['stop', (value) => !Array.isArray(value) || value.length > 0, 'OpenClaw does not pass it to the model.'],
  ['logprobs', (value) => value === true, 'must be false: an agent reports no probabilities.'],
  ['logit_bias', (value) => Object.keys(value as object).length > 0, 'OpenClaw does not pass it to the model.'],
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
  throw invalidField(param, 'must be a text, image_url or file part with the field that its type names.')
}

/** Converts a message to the items of a response. */
function itemsOf({ role, content, tool_calls: calls, tool_call_id: callId }: ChatMessage, index: number): InputItem[] {
  const read =
    typeof content === 'string'
      ? content
      : (content ?? []).map((part, partIndex) => contentPart(part, `messages.${index}.content.${partIndex}`))
  if (role === 'tool') {
    if (callId === undefined) throw invalidField(`messages.${index}.tool_call_id`, 'is missing.')
    return [{ type: 'function_call_output', call_id: callId, output: read }]
  }
  const callItems = (calls ?? []).map((call, callIndex): InputItem => {
    if (!call.function) throw invalidField(`messages.${index}.tool_calls.${callIndex}`, 'must be a function call.')
    return { type: 'function_call', call_id: call.id, ...call.function }
  })
  const hasMessage = read.length > 0 || callItems.length === 0
  return hasMessage ? [{ type: 'message', role, content: read }, ...callItems] : callItems
}

/** Converts `tool_choice` to the form of a response, which does not nest `function` and `allowed_tools`. */
function toolChoiceOf(choice: CreateChatCompletion['tool_choice']): CreateResponse['tool_choice'] {
  if (typeof choice !== 'object' || choice === null) return choice
  const { type, function: named, allowed_tools: allowed } = choice
  if (type !== 'allowed_tools') return { ...named, type }
  return { ...allowed, tools: allowed?.tools?.map((tool) => ({ ...tool.function, type: tool.type })) ?? [], type }
}

/** Converts `response_format` to the form of a response, which does not nest `json_schema`. */
function formatOf(format: CreateChatCompletion['response_format']) {
  return format && { ...format.json_schema, type: format.type }
}

/** Fields of a response that have another name in this format. */
const chatNames: Partial<Record<string, string>> = {
  'text.format.type': 'response_format.type',
  'text.format.name': 'response_format.json_schema.name',
  'text.format.schema': 'response_format.json_schema.schema',
  'tool_choice.name': 'tool_choice.function.name',
}

/**
 * Converts the body to one of a response. `toChatError` converts an error about a field of that response to one about
 * the field of this body. Throws AppError invalid that names the field that cannot be honoured.
 */
export function readChatRequest(body: CreateChatCompletion): {
  request: CreateResponse
  toChatError(error: unknown): unknown
} {
  refuseFields(body, chatFields, refusedFields)
  const { model, temperature, top_p, presence_penalty, frequency_penalty, top_logprobs, parallel_tool_calls } = body
  const items = body.messages.map(itemsOf)
  /** The index of the message of each item. */
  const messageOf = items.flatMap((ofMessage, index) => ofMessage.map(() => index))
  const request = {
    model,
    input: items.flat(),
    tools: body.tools?.map(({ type, function: one }) => ({ type, ...one })),
    tool_choice: toolChoiceOf(body.tool_choice),
    max_output_tokens: body.max_completion_tokens ?? body.max_tokens,
    text: { format: formatOf(body.response_format) },
    ...{ temperature, top_p, presence_penalty, frequency_penalty, top_logprobs, parallel_tool_calls },
  } as CreateResponse
  return {
    request,
    toChatError(error) {
      if (!(error instanceof AppError) || error.param === undefined) return error
      const param =
        chatNames[error.param] ??
        error.param
          .replace(/^input\.(\d+)/, (_, index: string) => `messages.${messageOf[Number(index)]}`)
          .replace(/^input$/, 'messages')
          .replace(/\.output\./, '.content.')
          .replace(/\.call_id$/, '.tool_call_id')
      return new AppError(error.code, error.message.replace(error.param, param), { cause: error, param })
    },
  }
}
