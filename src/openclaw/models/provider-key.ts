import { request } from 'undici'
import type { ModelProvider } from '#database/schema.ts'
import { providerHosts } from './providers.ts'
import { vendorMessage } from './vendor-message.ts'

const timeoutMs = 5000
const maxReadBytes = 64 * 1024

/** A provider's verdict on a key. `message` has its own words, without the key; null if it gave none. */
export interface KeyCheck {
  /** `unreachable` also when the provider's answer does not concern the key. */
  status: 'ok' | 'refused' | 'unreachable'
  message: string | null
}

/** The cheapest request that each provider answers differently for a bad key. */
const modelLists: Record<ModelProvider, (key: string) => { path: string; headers: Record<string, string> }> = {
  anthropic: (key) => ({
    path: '/v1/models?limit=1',
    headers: { 'x-api-key': key, 'anthropic-version': '2023-06-01' },
  }),
  openai: (key) => ({ path: '/v1/models', headers: { authorization: `Bearer ${key}` } }),
  gemini: (key) => ({ path: '/v1beta/models?pageSize=1', headers: { 'x-goog-api-key': key } }),
}

/**
 * Asks a provider whether it accepts a key, within 5 s. Only an unambiguous refusal is `refused`. A 403 is not: keys
 * with narrow scopes may not list models and still answer messages. Throws only the signal's reason.
 */
export async function checkProviderKey(
  provider: ModelProvider,
  baseUrl: string | undefined,
  key: string,
  signal: AbortSignal,
): Promise<KeyCheck> {
  const { path, headers } = modelLists[provider](key)
  const deadline = AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)])
  try {
    const base = (baseUrl ?? providerHosts[provider]).replace(/\/+$/, '')
    // undici follows no redirects, so the key goes to this host only.
    const { statusCode, body } = await request(`${base}${path}`, { headers, signal: deadline })
    if (statusCode < 300) {
      await body.dump({ limit: maxReadBytes, signal: deadline })
      return { status: 'ok', message: null }
    }
    return judge(provider, statusCode, await textOf(body), key)
  } catch {
    signal.throwIfAborted()
    const message = deadline.aborted ? `did not answer within ${timeoutMs / 1000} s` : 'cannot be reached'
    return { status: 'unreachable', message: `The provider ${message}.` }
  }
}

function judge(provider: ModelProvider, statusCode: number, text: string, key: string): KeyCheck {
  const message = vendorMessage(text.replaceAll(key, '…'))
  // Gemini answers a bad key with 400.
  const isRefused =
    statusCode === 401 || (provider === 'gemini' && statusCode === 400 && text.includes('API_KEY_INVALID'))
  if (isRefused) return { status: 'refused', message }
  if (statusCode === 403 || statusCode === 429) return { status: 'ok', message }
  return { status: 'unreachable', message: `The provider answered with ${statusCode}${message ? `: ${message}` : '.'}` }
}

/** The beginning of a body, as text. */
async function textOf(body: AsyncIterable<Buffer>): Promise<string> {
  const chunks: Buffer[] = []
  let bytes = 0
  for await (const chunk of body) {
    chunks.push(chunk)
    bytes += chunk.length
    if (bytes > maxReadBytes) break
  }
  return Buffer.concat(chunks).toString('utf8')
}
