/** The format that the text of an answer must have. */
export type OutputFormat =
  | { type: 'text' }
  | { type: 'json_object' }
  | {
      type: 'json_schema'
      name: string
      description: string | null
      schema: Record<string, unknown>
      strict: boolean | null
    }

/** A format whose answers are checked. */
export type JsonFormat = Exclude<OutputFormat, { type: 'text' }>

/** The schema that an answer must be valid against. */
export const schemaOf = (format: JsonFormat): object =>
  format.type === 'json_schema' ? format.schema : { type: 'object' }

/** The description of a format for the system prompt of the agent; null for plain text. */
export function formatInstructions(format: OutputFormat): string | null {
  if (format.type === 'text') return null
  const only =
    'A program reads your answer to this message. Use your tools first if you need them. Then answer with one JSON ' +
    `${format.type === 'json_object' ? 'object' : 'value'} and nothing else: no other text and no code fence.`
  if (format.type === 'json_object') return only
  const { name, description, schema } = format
  const named = `The value is ${JSON.stringify(name)}${description ? `: ${description}` : '.'}`
  return `${only} ${named}\nIt must be valid against this JSON Schema:\n${JSON.stringify(schema)}`
}

/** The message that asks the agent to correct an answer. */
export const correction = (fault: string): string =>
  `Your answer was not accepted: ${fault}. Answer again with the corrected JSON and nothing else. Do not repeat other work.`
