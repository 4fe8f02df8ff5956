export interface ModelRequest {
  api: 'anthropic' | 'openai-chat' | 'openai-responses' | 'gemini'
  model: string
  stream: boolean
  /** User messages with text, of the whole conversation that was sent. */
  turns: number
  last: string
  userTexts: string[]
  system: string
  tools: string[]
  images: number
  toolResults: string[]
  /** The provider key that came with it. */
  key: string | undefined
  headers: Record<string, string | string[] | undefined>
  body: Record<string, unknown>
  /** Whether the caller left before the answer was complete. */
  cut: boolean
}

export interface FakeModelProvider {
  url: string
  /** Everything received since the start or the last reset, oldest first. */
  requests: ModelRequest[]
  /** The only key that it accepts; undefined accepts every key. */
  apiKey: string | undefined
  reset(): void
  close(): Promise<void>
}

/** With `apiKey`, requests that carry another key get a 401 in the provider's own shape. */
export function startFakeModelProvider(options?: {
  host?: string
  port?: number
  apiKey?: string
}): Promise<FakeModelProvider>
