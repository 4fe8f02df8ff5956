import { eq } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type ModelProvider, modelProviders, providerKeys } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { providerKeyPlace } from '#instances/row.ts'
import type { BaseUrls } from '#openclaw/config/config.ts'
import { checkProviderKey, type KeyCheck } from '#openclaw/models/provider-key.ts'
import type { Vault } from '#platform/secrets.ts'

/** Keys by provider. null and an empty text mean no key. */
export type ModelKeys = Partial<Record<ModelProvider, string | null>>

/** The keys that the organization has stored. */
export async function storedModelKeys(db: Db, vault: Vault, organizationId: string): Promise<ModelKeys> {
  const rows = await db.select().from(providerKeys).where(eq(providerKeys.organizationId, organizationId))
  return Object.fromEntries(
    rows.map(({ provider, sealedKey }) => [
      provider,
      vault.unseal(sealedKey, providerKeyPlace(organizationId, provider)),
    ]),
  )
}

/** Validates each key with its provider, all at once. Omits empty keys. Throws only the signal's reason. */
export function testModelKeys(
  baseUrls: BaseUrls,
  keys: ModelKeys,
  signal: AbortSignal,
): Promise<(KeyCheck & { provider: ModelProvider })[]> {
  const given = modelProviders.flatMap((provider) => {
    const key = keys[provider]
    return key ? [{ provider, key }] : []
  })
  return Promise.all(
    given.map(async ({ provider, key }) => ({
      provider,
      ...(await checkProviderKey(provider, baseUrls[provider], key, signal)),
    })),
  )
}

/**
 * Throws AppError for the first key that its provider refuses (provider_key_invalid), or that could not be checked
 * (provider_error), with the field in `param`.
 */
export async function requireAcceptedKeys(baseUrls: BaseUrls, keys: ModelKeys, signal: AbortSignal): Promise<void> {
  for (const { provider, status, message } of await testModelKeys(baseUrls, keys, signal)) {
    const param = `model_api_keys.${provider}`
    if (status === 'refused')
      throw new AppError('provider_key_invalid', texts.modelKeyRefused(provider, message), { param })
    if (status === 'unreachable') {
      throw new AppError('provider_error', texts.modelKeyUnchecked(provider, message), { param })
    }
  }
}
