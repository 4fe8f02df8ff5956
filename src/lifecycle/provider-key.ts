import { request } from 'undici'
import type { ModelProvider } from '#database/schema.ts'
import { providerHosts } from '#openclaw/providers.ts'

const timeoutMs = 5000
const readAtMostBytes = 64 * 1024

/** The cheapest call that each vendor answers differently for a bad key. */
const modelLists: Record<ModelProvider, (key: string) => { path: string; headers: Record<string, string> }> = {
  anthropic: (key) => ({
    path: '/v1/models?limit=1',
    headers: { 'x-api-key': key, 'anthropic-version': '2023-06-01' },
  }),
  openai: (key) => ({ path: '/v1/models', headers: { authorization: `Bearer ${key}` } }),
  gemini: (key) => ({ path: '/v1beta/models?pageSize=1', headers: { 'x-goog-api-key': key } }),
}

/**
 * Whether the provider says that the key is bad. Anything else, no answer included, is false: only a plain refusal may
 * keep an agent from starting. A 403 is not one: keys with narrow scopes may not list models and still answer.
 */
export async function isRefusedByProvider(
  provider: ModelProvider,
  baseUrl: string | undefined,
  key: string,
  signal: AbortSignal,
): Promise<boolean> {
  const { path, headers } = modelLists[provider](key)
  const deadline = AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)])
  try {
    const base = (baseUrl ?? providerHosts[provider]).replace(/\/+$/, '')
    const answer = await request(`${base}${path}`, { headers, signal: deadline })
    if (answer.statusCode === 401) {
      await answer.body.dump()
      return true
    }
    if (provider !== 'gemini' || answer.statusCode !== 400) {
      await answer.body.dump({ limit: readAtMostBytes, signal: deadline })
      return false
    }
    return (await answer.body.text()).includes('API_KEY_INVALID') // Gemini answers a bad key with 400
  } catch {
    signal.throwIfAborted()
    return false
  }
}
