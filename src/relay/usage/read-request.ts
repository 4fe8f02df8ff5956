import type { ModelProvider } from '#database/schema.ts'
import { createFieldReader, type FieldReader } from './json-fields.ts'
import { type CallOrigin, readOrigin } from './runtime-line.ts'

/** The parsed facts of a request so far. */
export interface ParsedRequest extends CallOrigin {
  /** The requested model; null if it is unknown. */
  model: string | null
}

export interface RequestReader extends Pick<FieldReader, 'read'> {
  result(): ParsedRequest
}

/** The paths of the system prompt. OpenAI's may be the first item of the input. */
const prompts: Record<ModelProvider, string[]> = {
  anthropic: ['system'],
  openai: ['instructions', 'input.0.content'],
  gemini: ['systemInstruction'],
}
const firstRole = 'input.0.role'

/** The model in the path of a call of Gemini. */
const modelInPath = /\/models\/([^/:]+):/

/** Parses the session and the model of a call as its bytes pass. */
export function createRequestReader(provider: ModelProvider, path: string): RequestReader {
  const [, named = null] = modelInPath.exec(path) ?? []
  const result: ParsedRequest = { model: named, session: null, cause: null }
  let isOfUser = false
  const fields = createFieldReader(
    ['model', firstRole, ...prompts[provider]],
    (field, value) => {
      if (typeof value !== 'string') return
      if (field === 'model') result.model ??= value
      else if (field === firstRole) isOfUser = value === 'user'
      else if (!isOfUser && result.session === null) Object.assign(result, readOrigin(value))
    },
    prompts[provider],
  )
  return { read: fields.read, result: () => result }
}
