import type { ModelProvider } from '#database/schema.ts'
import { createFieldReader, type FieldReader } from './json-fields.ts'
import { readOrigin, type ToldOrigin } from './runtime-line.ts'

/** What a request says of itself, as far as it has come. */
export interface ToldRequest extends ToldOrigin {
  /** The model that is asked; null when it is not told. */
  model: string | null
}

export interface RequestReader extends Pick<FieldReader, 'read'> {
  told(): ToldRequest
}

/** Where the system prompt is. OpenAI's may be the first item of the input. */
const prompts: Record<ModelProvider, string[]> = {
  anthropic: ['system'],
  openai: ['instructions', 'input.0.content'],
  gemini: ['systemInstruction'],
}
const firstRole = 'input.0.role'

/** The model in the path of a call of Gemini. */
const modelInPath = /\/models\/([^/:]+):/

/** Reads who asks a call, and for which model, as its bytes pass. */
export function createRequestReader(provider: ModelProvider, path: string): RequestReader {
  const [, named = null] = modelInPath.exec(path) ?? []
  const told: ToldRequest = { model: named, session: null, cause: null }
  let isOfUser = false
  const fields = createFieldReader(
    ['model', firstRole, ...prompts[provider]],
    (field, value) => {
      if (typeof value !== 'string') return
      if (field === 'model') told.model ??= value
      else if (field === firstRole) isOfUser = value === 'user'
      else if (!isOfUser && told.session === null) Object.assign(told, readOrigin(value))
    },
    prompts[provider],
  )
  return { read: fields.read, told: () => told }
}
