import type { ModelProvider } from '#database/schema.ts'

/**
 * With these headers OpenClaw asks Anthropic to stream the input of tools, and to let models think between tool calls.
 */
const anthropicBeta = 'fine-grained-tool-streaming-2025-05-14,interleaved-thinking-2025-05-14'

/**
 * OpenClaw's id of each provider, which prefixes model names, and the provider's API. Without `api`, OpenClaw uses chat
 * completions for every model that its catalog does not contain. `headers` are those that it sends by itself only to
 * the vendor's own host.
 */
export const gatewayProviders = {
  anthropic: {
    id: 'anthropic',
    api: 'anthropic-messages',
    pathPrefix: '',
    headers: { 'anthropic-beta': anthropicBeta },
  },
  openai: { id: 'openai', api: 'openai-responses', pathPrefix: '/v1', headers: {} },
  gemini: { id: 'google', api: 'google-generative-ai', pathPrefix: '/v1beta', headers: {} },
} as const satisfies Record<
  ModelProvider,
  { id: string; api: string; pathPrefix: string; headers: Record<string, string> }
>

/** The vendors' own hosts. */
export const providerHosts: Readonly<Record<ModelProvider, string>> = {
  anthropic: 'https://api.anthropic.com',
  openai: 'https://api.openai.com',
  gemini: 'https://generativelanguage.googleapis.com',
}

/** A model's name without a provider prefix. */
export const bareModel = (model: string): string => model.slice(model.indexOf('/') + 1)
