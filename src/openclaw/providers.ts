import type { ModelProvider } from '#database/schema.ts'

/**
 * OpenClaw's name of each provider, which it wants before a model's name, and the wire format. Without `api` OpenClaw speaks
 * chat completions for every model that its catalog does not know.
 */
export const gatewayProviders = {
  anthropic: { id: 'anthropic', api: 'anthropic-messages', pathPrefix: '' },
  openai: { id: 'openai', api: 'openai-responses', pathPrefix: '/v1' },
  gemini: { id: 'google', api: 'google-generative-ai', pathPrefix: '/v1beta' },
} as const satisfies Record<ModelProvider, { id: string; api: string; pathPrefix: string }>

/** The vendors' own hosts. */
export const providerHosts: Readonly<Record<ModelProvider, string>> = {
  anthropic: 'https://api.anthropic.com',
  openai: 'https://api.openai.com',
  gemini: 'https://generativelanguage.googleapis.com',
}
