import { hash } from 'node:crypto'
import { eq } from 'drizzle-orm'
import { LRUCache } from 'lru-cache'
import type { Db } from '#database/client.ts'
import { channels, type Instance, providerKeys, skills } from '#database/schema.ts'
import { providerKeyPlace, unsealRelayToken, unsealSettings, unsealToken } from '#instances/row.ts'
import { credentialsIn } from '#openclaw/config/channel-credentials.ts'
import { createMask, type Mask } from '#platform/mask.ts'
import type { Vault } from '#platform/secrets.ts'
import { unsealChannel, unsealSkill } from './configuration.ts'
import { egressToken } from './tokens.ts'

/** The masks of instances whose logs are being read. The bound of an instance's settings bounds each to some 10 MB. */
const masks = new LRUCache<string, Mask>({ max: 10 })

/**
 * A mask of the secrets in an instance's output: the keys of its organization's model providers, the tokens of its
 * gateway, and the credentials of its channels, skills and overrides, as stored now. It is built once for each version
 * of them.
 */
export async function createInstanceMask(db: Db, vault: Vault, row: Instance): Promise<Mask> {
  const [stored, skillRows, keys] = await Promise.all([
    // Including refused ones: the gateway may have written the reason.
    db.select().from(channels).where(eq(channels.instanceId, row.id)),
    db.select().from(skills).where(eq(skills.instanceId, row.id)),
    db.select().from(providerKeys).where(eq(providerKeys.organizationId, row.organizationId)),
  ])
  const sealed = [
    ...[row.id, row.sealedToken, row.sealedRelayToken, row.sealedConfig],
    ...stored.map(({ sealedConfig }) => sealedConfig),
    ...skillRows.map(({ sealedSettings }) => sealedSettings),
    ...keys.map(({ sealedKey }) => sealedKey),
  ]
  // A sealed text differs each time that it is written.
  const version = hash('sha256', JSON.stringify(sealed))
  const known = masks.get(version)
  if (known) return known
  const relayToken = unsealRelayToken(vault, row)
  const mask = createMask([
    unsealToken(vault, row),
    ...(relayToken === null ? [] : [relayToken, egressToken(relayToken)]),
    ...keys.map(({ sealedKey, provider }) => vault.unseal(sealedKey, providerKeyPlace(row.organizationId, provider))),
    ...stored.flatMap((channel) => credentialsIn(unsealChannel(vault, channel).config)),
    ...skillRows.flatMap((skill) => credentialsIn(unsealSkill(vault, skill))),
    ...credentialsIn(unsealSettings(vault, row).openclawConfig),
  ])
  masks.set(version, mask)
  return mask
}
