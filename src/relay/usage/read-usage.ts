import type { IncomingHttpHeaders } from 'node:http'
import type { ModelProvider } from '#database/schema.ts'
import { createFieldReader, type FieldReader } from './json-fields.ts'

const newline = 0x0a
const carriageReturn = 0x0d
const fieldName = Buffer.from('data:')

/**
 * Extracts the data of server-sent events, each a JSON text, from pieces that are cut anywhere. Lines end with LF or CRLF,
 * like those of all vendors.
 */
export function createEventDataReader(fields: FieldReader): Pick<FieldReader, 'read'> {
  /** The length of the parsed prefix of the field name in this line; null for a line of another field. */
  let matched: number | null = 0
  let isBlank = true
  return {
    read(piece) {
      for (let at = 0; at < piece.length; ) {
        const end = piece.indexOf(newline, at)
        const until = end === -1 ? piece.length : end
        for (; at < until && matched !== null && matched < fieldName.length; at += 1) {
          if (piece[at] !== carriageReturn) isBlank = false
          matched = piece[at] === fieldName[matched] ? matched + 1 : null
        }
        if (matched === fieldName.length && at < until) fields.read(piece.subarray(at, until))
        if (end === -1) return
        if (isBlank) fields.reset()
        matched = 0
        isBlank = true
        at = end + 1
      }
    },
  }
}

/** The usage parsed from an answer. */
export interface ReportedUsage {
  /** The model that answered; null if it was not reported. */
  model: string | null
  /** The vendor's fields by the vendor's names; null if none were reported. */
  usage: Record<string, unknown> | null
}

export interface UsageReader extends Pick<FieldReader, 'read'> {
  /** The usage so far: a cut answer has a part of it, or none. */
  result(): ReportedUsage
}

/** The paths of the model and the usage for each vendor: in an answer, and in the events of a stream. */
const paths: Record<ModelProvider, { model: string[]; usage: string[] }> = {
  // The first event has the input, and later ones the output so far.
  anthropic: { model: ['model', 'message.model'], usage: ['usage', 'message.usage'] },
  // The last event of responses has the whole response, that of chat completions only the usage.
  openai: { model: ['model', 'response.model'], usage: ['usage', 'response.usage'] },
  // Each event has the usage so far. Without `alt=sse` a stream is one array.
  gemini: { model: ['modelVersion', '*.modelVersion'], usage: ['usageMetadata', '*.usageMetadata'] },
}

/**
 * Parses the usage in an answer as its bytes pass; null for an answer without one, such as audio, or a compressed one.
 * Keeps only these fields of the answer in memory.
 */
export function createUsageReader(provider: ModelProvider, headers: IncomingHttpHeaders): UsageReader | null {
  const type = headers['content-type'] ?? ''
  const isStream = /^text\/event-stream\b/i.test(type)
  const isReadable = (headers['content-encoding'] ?? 'identity') === 'identity'
  if (!isReadable || !(isStream || /\bjson\b/i.test(type))) return null
  const result: ReportedUsage = { model: null, usage: null }
  const { model, usage } = paths[provider]
  const fields = createFieldReader([...model, ...usage], (path, value) => {
    if (model.includes(path)) result.model = typeof value === 'string' && value !== '' ? value : result.model
    else if (typeof value === 'object' && value !== null) {
      const known = Object.entries(value).filter(([, count]) => count !== null)
      result.usage = { ...result.usage, ...Object.fromEntries(known) }
    }
  })
  const { read } = isStream ? createEventDataReader(fields) : fields
  return { read, result: () => result }
}
