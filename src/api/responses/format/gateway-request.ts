import { formatInstructions } from '#turns/output/format.ts'
import { type ContentPart, contentParts, type InputItem } from './input-schema.ts'
import { invalidField } from './invalid-field.ts'
import { type MediaSource, maxUrlParts, readFileData, readFileUrl, readImage } from './media.ts'
import type { CheckedRequest } from './request.ts'
import type { ResponseTool } from './response-schema.ts'

export type GatewayPart =
  | { type: 'input_text'; text: string }
  | { type: 'input_image' | 'input_file'; source: MediaSource }

/** The text of a content, joined as in OpenClaw. */
const textOf = (content: string | ContentPart[]): string =>
  typeof content === 'string'
    ? content
    : content
        .flatMap((part) => ('text' in part ? [part.text] : part.type === 'refusal' ? [part.refusal] : []))
        .join('\n')

function readMedia(part: ContentPart, param: string): GatewayPart | null {
  if (part.type === 'input_image') {
    if (part.file_id || !part.image_url) {
      throw invalidField(param, 'an image must come as image_url: there are no stored files.', 'unsupported_value')
    }
    return { type: 'input_image', source: readImage(part.image_url, `${param}.image_url`) }
  }
  if (part.type === 'input_audio' || part.type === 'input_video') {
    throw invalidField(param, `an agent does not accept ${part.type}.`, 'unsupported_value')
  }
  if (part.type !== 'input_file') return null
  const { file_data: data, file_url: url, filename } = part
  if (data) return { type: 'input_file', source: readFileData(data, filename ?? undefined, `${param}.file_data`) }
  if (url) return { type: 'input_file', source: readFileUrl(url, `${param}.file_url`) }
  throw invalidField(
    param,
    'a file must come as file_data or file_url: there are no stored files.',
    'unsupported_value',
  )
}

/** The images and files of an item. Throws AppError invalid when the item is not a message of the user and has any. */
function mediaOf(item: InputItem, index: number): GatewayPart[] {
  const field = item.type === 'message' ? 'content' : 'output'
  return contentParts(item).flatMap((part, partIndex) => {
    const param = `input.${index}.${field}.${partIndex}`
    const media = readMedia(part, param)
    if (!media) return []
    if (item.type === 'message' && item.role === 'user') return [media]
    throw invalidField(param, 'OpenClaw accepts images and files only in messages of the user.', 'unsupported_value')
  })
}

const asksAgent = (item: InputItem): boolean =>
  item.type === 'function_call_output' || (item.type === 'message' && item.role === 'user')
const isFromAgent = (item: InputItem): boolean =>
  item.type === 'function_call' || item.type === 'compaction' || (item.type === 'message' && item.role === 'assistant')

/** The text by which an agent reads a compaction. */
export const summaryText = (summary: string): string => `Summary of the earlier conversation: ${summary}`

function gatewayItem(item: InputItem): object[] {
  if (item.type === 'message') return [{ type: 'message', role: item.role, content: textOf(item.content) }]
  if (item.type === 'function_call_output') {
    return [{ type: 'function_call_output', call_id: item.call_id, output: textOf(item.output) }]
  }
  if (item.type === 'compaction') return [{ type: 'message', role: 'assistant', content: summaryText(item.summary) }]
  if (item.type !== 'function_call') return []
  const { type, call_id, name, arguments: args } = item
  return [{ type, call_id, name, arguments: args }]
}

/**
 * The input in OpenClaw's form. OpenClaw passes on only the images and files of the user's last message, so that
 * message gets all of them.
 */
function gatewayInput(items: InputItem[], offset: number): object[] {
  const lastIndex = items.findLastIndex(asksAgent)
  const last = items[lastIndex]
  if (!last || items.slice(lastIndex).some(isFromAgent)) {
    throw invalidField('input', 'must end with a message of the user or with a function_call_output.')
  }
  const media = items.flatMap((item, index) => mediaOf(item, index + offset))
  if (media.filter((part) => 'source' in part && part.source.type === 'url').length > maxUrlParts) {
    throw invalidField('input', `must not name more than ${maxUrlParts} images and files by URL.`)
  }
  if (last.type !== 'message') {
    if (media.length === 0) return items.flatMap(gatewayItem)
    throw invalidField(
      'input',
      'OpenClaw accepts no images and files with a function_call_output.',
      'unsupported_value',
    )
  }
  const text = textOf(last.content)
  if (text.trim() === '' && media.length === 0) throw invalidField('input', 'the last message of the user is empty.')
  if (media.length === 0) return items.flatMap(gatewayItem)
  const content = [...(text === '' ? [] : [{ type: 'input_text', text }]), ...media]
  return items.flatMap((item) => (item === last ? [{ type: 'message', role: last.role, content }] : gatewayItem(item)))
}

const gatewayTool = ({ type, name, description, parameters }: ResponseTool) => ({
  type,
  name,
  ...(description !== null && { description }),
  ...(parameters !== null && { parameters }),
})

/**
 * The body for OpenClaw from a checked request, with the items from `offset` on: the session has the earlier ones.
 * Throws AppError invalid or too_large that names the field that OpenClaw would refuse or drop.
 */
export function gatewayRequest({ echo, items, sampling, tools, toolChoice }: CheckedRequest, offset = 0) {
  const { max_output_tokens } = echo
  const instructions = [echo.instructions, formatInstructions(echo.text.format)].filter((text) => text !== null)
  return {
    model: 'openclaw',
    input: gatewayInput(items.slice(offset), offset),
    ...(instructions.length > 0 && { instructions: instructions.join('\n\n') }),
    ...(tools.length > 0 && { tools: tools.map(gatewayTool), tool_choice: toolChoice }),
    ...sampling,
    ...(max_output_tokens !== null && { max_output_tokens }),
  }
}
