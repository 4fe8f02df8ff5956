import type { ModelProvider } from '#database/schema.ts'

/**
 * OpenClaw's id of each provider, which prefixes model names, and the provider's API. Without `api`, OpenClaw uses chat
 * completions for every model that its catalog does not contain.
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

/** A model's name without a provider prefix. */
export const bareModel = (model: string): string => model.slice(model.indexOf('/') + 1)
