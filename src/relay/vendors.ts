import type { ModelProvider } from '#database/schema.ts'

/** A permitted call: its method, and the pattern of its path. */
interface Route {
  method: 'GET' | 'POST'
  path: RegExp
}

interface Vendor {
  routes: readonly Route[]
  /** The header that carries the key. */
  keyHeader(key: string): [name: string, value: string]
  /** The body of an error in the format of the vendor's own clients. */
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
 * The model providers. The permitted routes compute something from the body of the call, or list models. None of them
 * lists or changes stored data in the account of the key, which other agents use too. Unguessable ids in a body, such
 * as a file's, are not checked. No segment may consist of dots, or contain an escape.
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
