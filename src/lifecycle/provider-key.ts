import { request } from 'undici'
import type { ModelProvider } from '#database/schema.ts'
import { unsealInstance } from '#instances/gateway/configuration.ts'
import { providerHosts } from '#openclaw/providers.ts'
import { type Failure, failedForGood, type StepContext } from './step.ts'

const timeoutMs = 5000
const maxReadBytes = 64 * 1024

/** The cheapest request that each provider answers differently for a bad key. */
const modelLists: Record<ModelProvider, (key: string) => { path: string; headers: Record<string, string> }> = {
  anthropic: (key) => ({
    path: '/v1/models?limit=1',
    headers: { 'x-api-key': key, 'anthropic-version': '2023-06-01' },
  }),
  openai: (key) => ({ path: '/v1/models', headers: { authorization: `Bearer ${key}` } }),
  gemini: (key) => ({ path: '/v1beta/models?pageSize=1', headers: { 'x-goog-api-key': key } }),
}

const remedy = 'with PATCH /v1/organization, then start the instance.'

export const noKey = (provider: ModelProvider): Failure =>
  failedForGood(`Your organization has no ${provider} key. Set one ${remedy}`)

/** The failure of an instance whose organization has no key, or a key that the provider refuses; null otherwise. */
export async function findKeyProblem({ db, vault, lease, baseUrls, signal }: StepContext): Promise<Failure | null> {
  const provider = lease.instance.modelProvider
  const { providerKey } = await unsealInstance(db, vault, lease.instance)
  if (providerKey === null) return noKey(provider)
  if (!(await isRefused(provider, baseUrls[provider], providerKey, signal))) return null
  return failedForGood(`${provider} refused your organization's API key. Set another ${remedy}`)
}

/**
 * Whether the provider refuses the key. Any other answer, and none, is false: only an unambiguous refusal may keep an
 * agent from starting. A 403 is not one: keys with narrow scopes may not list models and still answer messages.
 */
async function isRefused(
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
      await answer.body.dump({ limit: maxReadBytes, signal: deadline })
      return false
    }
    return (await answer.body.text()).includes('API_KEY_INVALID') // Gemini answers a bad key with 400
  } catch {
    signal.throwIfAborted()
    return false
  }
}
