import { and, eq } from 'drizzle-orm'
import { type ModelProvider, providerKeys } from '#database/schema.ts'
import { recordKeyRefusal } from '#instances/provider-key-refusal.ts'
import { providerKeyPlace } from '#instances/row.ts'
import { poolOrganizationId } from '#instances/warm-pool.ts'
import { checkProviderKey } from '#openclaw/models/provider-key.ts'
import { type Failure, failedForGood, type StepContext } from './step.ts'

const remedy = 'with PATCH /v1/organization, then start the instance.'

const noKey = (provider: ModelProvider): Failure =>
  failedForGood(`Your organization has no ${provider} key. Set one ${remedy}`)

/** The key of the instance's organization for its provider; null if it has none. */
async function providerKeyOf({ db, vault, lease }: StepContext): Promise<string | null> {
  const { organizationId, modelProvider } = lease.instance
  const [key] = await db
    .select({ sealed: providerKeys.sealedKey })
    .from(providerKeys)
    .where(and(eq(providerKeys.organizationId, organizationId), eq(providerKeys.provider, modelProvider)))
  return key ? vault.unseal(key.sealed, providerKeyPlace(organizationId, modelProvider)) : null
}

/** The failure of an instance whose organization has no key; null otherwise. A warm instance needs none. */
export async function findKeyMissing(context: StepContext): Promise<Failure | null> {
  const { organizationId, modelProvider } = context.lease.instance
  if (organizationId === poolOrganizationId || (await providerKeyOf(context)) !== null) return null
  return noKey(modelProvider)
}

/** The failure of an instance whose organization has no key, or a key that the provider refuses; null otherwise. */
export async function findKeyProblem(context: StepContext): Promise<Failure | null> {
  const { db, lease, baseUrls, signal } = context
  if (lease.instance.organizationId === poolOrganizationId) return null
  const provider = lease.instance.modelProvider
  const providerKey = await providerKeyOf(context)
  if (providerKey === null) return noKey(provider)
  const { status } = await checkProviderKey(provider, baseUrls[provider], providerKey, signal)
  if (status !== 'refused') return null
  await recordKeyRefusal(db, lease.instance.organizationId, provider)
  return failedForGood(`${provider} refused your organization's API key. Set another ${remedy}`)
}
