import type { ContentPart, InputItem } from './input-schema.ts'
import { newItemId } from './response-writer.ts'

/** A part without the bytes of its image or file, which are not stored. */
function storedPart(part: ContentPart): object {
  if (part.type === 'input_image') {
    const { type, image_url: url, detail } = part
    return { type, image_url: url?.startsWith('data:') ? null : (url ?? null), detail: detail ?? 'auto' }
  }
  if (part.type === 'input_file') {
    const { type, filename, file_url: url } = part
    return { type, ...(filename && { filename }), ...(url && { file_url: url }) }
  }
  if (part.type === 'output_text') return { type: part.type, text: part.text, annotations: [], logprobs: [] }
  if (part.type === 'refusal') return { type: part.type, refusal: part.refusal }
  return 'text' in part ? { type: part.type, text: part.text } : { type: part.type }
}

/** A stored item of an input; its other fields depend on its type. */
export interface StoredItem {
  type: string
  id: string
}

/** The items of an input as clients read them later, each with an id. */
export const storedInput = (items: readonly InputItem[]): StoredItem[] =>
  items.map((item) => {
    if (item.type === 'reasoning' || item.type === 'item_reference')
      return { type: item.type, id: item.id ?? newItemId('msg') }
    if (item.type === 'compaction')
      return { type: item.type, id: item.id ?? newItemId('cmp'), encrypted_content: item.encrypted_content }
    const common = {
      type: item.type,
      id: item.id ?? newItemId(item.type === 'message' ? 'msg' : 'fc'),
      status: 'completed',
    }
    if (item.type === 'message') {
      const { role, content } = item
      const type = role === 'assistant' ? 'output_text' : 'input_text'
      const parts: ContentPart[] = typeof content === 'string' ? [{ type, text: content }] : content
      return { ...common, role, content: parts.map(storedPart) }
    }
    const { call_id } = item
    if (item.type === 'function_call') return { ...common, call_id, name: item.name, arguments: item.arguments }
    const { output } = item
    return { ...common, call_id, output: typeof output === 'string' ? output : output.map(storedPart) }
  })
