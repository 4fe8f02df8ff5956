import type { ModelProvider } from '#database/schema.ts'

/** A call that the relay lets through: its method, and the pattern of its path. */
interface Route {
  method: 'GET' | 'POST'
  path: RegExp
}

interface Vendor {
  routes: readonly Route[]
  /** The header that carries the key. */
  keyHeader(key: string): [name: string, value: string]
  /** The body of an error, as the vendor's own clients read it. */
  error(status: number, message: string): object
}

const get = (path: RegExp): Route => ({ method: 'GET', path })
const post = (path: RegExp): Route => ({ method: 'POST', path })

const anthropicTypes: Record<number, string> = {
  400: 'invalid_request_error',
  401: 'authentication_error',
  404: 'not_found_error',
  413: 'request_too_large',
  429: 'rate_limit_error',
}

const openaiCodes: Record<number, string> = { 401: 'invalid_api_key', 429: 'rate_limit_exceeded' }

const geminiStatuses: Record<number, string> = {
  400: 'INVALID_ARGUMENT',
  401: 'UNAUTHENTICATED',
  404: 'NOT_FOUND',
  413: 'INVALID_ARGUMENT',
  429: 'RESOURCE_EXHAUSTED',
  503: 'UNAVAILABLE',
  504: 'DEADLINE_EXCEEDED',
}

/**
 * The model providers. Their routes are those that compute something from what the call carries, and the lists of
 * models. None of them lists or changes what is stored in the account of the key, which other agents use too. What a
 * call names in its body by an id that cannot be guessed, such as a file, is not looked at. No segment may consist of
 * dots, or have an escape.
 */
export const vendors: Record<ModelProvider, Vendor> = {
  anthropic: {
    routes: [
      get(/^\/v1\/models(?:\/[\w][\w.:-]*)?$/),
      post(/^\/v1\/messages$/),
      post(/^\/v1\/messages\/count_tokens$/),
    ],
    keyHeader: (key) => ['x-api-key', key],
    error: (status, message) => ({ type: 'error', error: { type: anthropicTypes[status] ?? 'api_error', message } }),
  },
  openai: {
    routes: [
      get(/^\/v1\/models(?:\/[\w][\w.:-]*)?$/),
      post(/^\/v1\/responses(?:\/compact|\/input_tokens)?$/),
      post(/^\/v1\/(?:chat\/completions|completions|embeddings|moderations)$/),
      post(/^\/v1\/audio\/(?:speech|transcriptions|translations)$/),
      post(/^\/v1\/images\/(?:generations|edits)$/),
    ],
    keyHeader: (key) => ['authorization', `Bearer ${key}`],
    error: (status, message) => ({
      error: {
        message,
        type: status < 500 ? 'invalid_request_error' : 'server_error',
        param: null,
        code: openaiCodes[status] ?? null,
      },
    }),
  },
  gemini: {
    routes: [
      get(/^\/v1(?:beta)?\/models(?:\/[\w][\w.-]*)?$/),
      post(
        /^\/v1(?:beta)?\/models\/[\w][\w.-]*:(?:generateContent|streamGenerateContent|countTokens|embedContent|batchEmbedContents)$/,
      ),
    ],
    keyHeader: (key) => ['x-goog-api-key', key],
    error: (status, message) => ({ error: { code: status, message, status: geminiStatuses[status] ?? 'INTERNAL' } }),
  },
}
