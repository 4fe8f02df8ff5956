import type { ModelProvider } from '#database/schema.ts'
import { unsealInstance } from '#instances/gateway/configuration.ts'
import { noteKeyRefusal } from '#instances/provider-key-refusal.ts'
import { checkProviderKey } from '#openclaw/provider-key.ts'
import { type Failure, failedForGood, type StepContext } from './step.ts'

const remedy = 'with PATCH /v1/organization, then start the instance.'

export const noKey = (provider: ModelProvider): Failure =>
  failedForGood(`Your organization has no ${provider} key. Set one ${remedy}`)

/** The failure of an instance whose organization has no key, or a key that the provider refuses; null otherwise. */
export async function findKeyProblem({ db, vault, lease, baseUrls, signal }: StepContext): Promise<Failure | null> {
  const provider = lease.instance.modelProvider
  const { providerKey } = await unsealInstance(db, vault, lease.instance)
  if (providerKey === null) return noKey(provider)
  const { status } = await checkProviderKey(provider, baseUrls[provider], providerKey, signal)
  if (status !== 'refused') return null
  await noteKeyRefusal(db, lease.instance.organizationId, provider)
  return failedForGood(`${provider} refused your organization's API key. Set another ${remedy}`)
}
