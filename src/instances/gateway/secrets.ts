import { eq } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { channels, type Instance, providerKeys } from '#database/schema.ts'
import { providerKeyPlace } from '#instances/row.ts'
import { credentialsIn } from '#openclaw/config/channel-credentials.ts'
import { createMask, type Mask } from '#platform/mask.ts'
import type { Vault } from '#platform/secrets.ts'
import { unsealChannel, unsealInstance } from './configuration.ts'
import { egressToken } from './tokens.ts'

/**
 * A mask of the secrets in an instance's output: the keys of its organization's model providers, the tokens of its
 * gateway, and the credentials of its channels, skills and overrides, as stored now.
 */
export async function createInstanceMask(db: Db, vault: Vault, row: Instance): Promise<Mask> {
  const [{ token, relayToken, openclawConfig, skills }, stored, keys] = await Promise.all([
    unsealInstance(db, vault, row),
    // Including refused ones: the gateway may have written the reason.
    db.select().from(channels).where(eq(channels.instanceId, row.id)),
    db.select().from(providerKeys).where(eq(providerKeys.organizationId, row.organizationId)),
  ])
  return createMask([
    token,
    ...(relayToken === null ? [] : [relayToken, egressToken(relayToken)]),
    ...keys.map(({ sealedKey, provider }) => vault.unseal(sealedKey, providerKeyPlace(row.organizationId, provider))),
    ...stored.flatMap((channel) => credentialsIn(unsealChannel(vault, channel).config)),
    ...credentialsIn(skills),
    ...credentialsIn(openclawConfig),
  ])
}
