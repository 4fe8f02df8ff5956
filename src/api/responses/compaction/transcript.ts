import { summaryText } from '#api/responses/format/gateway-request.ts'
import type { ContentPart, InputItem } from '#api/responses/format/input-schema.ts'
import type { OutputItem } from '#api/responses/format/response-schema.ts'

/** The input and output of a turn. */
export interface TranscriptTurn {
  input: InputItem[]
  output: readonly OutputItem[]
}

/** The items of a conversation, without the earlier ones that a client has sent again with a turn. */
function itemsOf(turns: readonly TranscriptTurn[]): InputItem[] {
  /** The ids of the items that the agent made, and of its calls. */
  const made = new Set<string>()
  return turns.flatMap(({ input, output }) => {
    const known = input.findLastIndex(
      (item) => made.has(item.id ?? '') || (item.type === 'function_call' && made.has(item.call_id)),
    )
    for (const item of output) made.add(item.id).add(item.type === 'function_call' ? item.call_id : item.id)
    return [...input.slice(known + 1), ...output]
  })
}

function partText(part: ContentPart): string {
  if ('text' in part) return part.text
  if (part.type === 'refusal') return part.refusal
  const name = part.type === 'input_file' ? part.filename : null
  return `[${part.type}${name ? ` ${name}` : ''}]`
}

const textOf = (content: string | ContentPart[]): string =>
  typeof content === 'string' ? content : content.map(partText).join('\n')

function entryOf(item: InputItem): string[] {
  if (item.type === 'message') return [`${item.role}: ${textOf(item.content)}`]
  if (item.type === 'compaction') return [summaryText(item.summary)]
  if (item.type === 'function_call') return [`assistant calls ${item.name}: ${item.arguments}`]
  if (item.type === 'function_call_output') return [`result of the call: ${textOf(item.output)}`]
  return []
}

/** A conversation as text; empty when nobody says anything. */
export const transcriptOf = (turns: readonly TranscriptTurn[]): string => itemsOf(turns).flatMap(entryOf).join('\n\n')
