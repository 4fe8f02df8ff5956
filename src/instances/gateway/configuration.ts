import { and, asc, eq, isNull } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type Channel, channels, type Instance, providerKeys, skills } from '#database/schema.ts'
import { providerKeyPlace, unsealConfig, unsealToken } from '#instances/row.ts'
import { type BaseUrls, type ChannelSettings, type GatewayConfig, renderConfig } from '#openclaw/config.ts'
import { parseOverrides } from '#openclaw/overrides.ts'
import type { Vault } from '#platform/secrets.ts'

/** All that a gateway's configuration is rendered from, opened. */
export interface UnsealedInstance {
  token: string
  /** null when the organization has none. */
  providerKey: string | null
  /** The caller's overrides as they were sent. */
  openclawConfig: Record<string, unknown> | null
  channels: readonly ChannelSettings[]
  skills: Readonly<Record<string, Record<string, unknown>>>
}

export const channelConfigPlace = (instanceId: string, channel: string) =>
  `channels/${instanceId}.${channel}/sealed_config`
export const skillSettingsPlace = (instanceId: string, name: string) => `skills/${instanceId}.${name}/sealed_settings`

/** A stored channel as the gateway's configuration is rendered from it. */
export const unsealChannel = (
  vault: Vault,
  { instanceId, channel, enabled, sealedConfig }: Channel,
): ChannelSettings => ({
  channel,
  enabled,
  config: JSON.parse(vault.unseal(sealedConfig, channelConfigPlace(instanceId, channel))),
})

/** Only those that the gateway has taken: settings that it refuses would keep it from starting. */
async function unsealChannels(db: Db, vault: Vault, instanceId: string): Promise<ChannelSettings[]> {
  const rows = await db
    .select()
    .from(channels)
    .where(and(eq(channels.instanceId, instanceId), isNull(channels.step), isNull(channels.errorMessage)))
    .orderBy(asc(channels.channel))
  return rows.map((row) => unsealChannel(vault, row))
}

async function unsealSkills(db: Db, vault: Vault, instanceId: string) {
  const rows = await db.select().from(skills).where(eq(skills.instanceId, instanceId)).orderBy(asc(skills.name))
  return Object.fromEntries(
    rows.flatMap(({ name, sealedSettings }) =>
      sealedSettings === null
        ? []
        : [[name, JSON.parse(vault.unseal(sealedSettings, skillSettingsPlace(instanceId, name)))]],
    ),
  )
}

export async function unsealInstance(db: Db, vault: Vault, row: Instance): Promise<UnsealedInstance> {
  const { id, organizationId, modelProvider } = row
  const [key] = await db
    .select({ sealed: providerKeys.sealedKey })
    .from(providerKeys)
    .where(and(eq(providerKeys.organizationId, organizationId), eq(providerKeys.provider, modelProvider)))
  return {
    token: unsealToken(vault, row),
    providerKey: key ? vault.unseal(key.sealed, providerKeyPlace(organizationId, modelProvider)) : null,
    openclawConfig: unsealConfig(vault, row),
    channels: await unsealChannels(db, vault, id),
    skills: await unsealSkills(db, vault, id),
  }
}

/** The gateway's configuration, and the system prompt that belongs into a file of its own. */
export function renderGateway(
  row: Pick<Instance, 'openclawVersion' | 'modelProvider'>,
  opened: UnsealedInstance,
  { baseUrls, port }: { baseUrls: BaseUrls; port: number },
): { config: GatewayConfig; systemPrompt: string | null } {
  const { token, providerKey, channels, skills } = opened
  const { tree, systemPrompt } = parseOverrides(opened.openclawConfig ?? {})
  const { openclawVersion: release, modelProvider: provider } = row
  const baseUrl = baseUrls[provider]
  const config = renderConfig({
    release,
    provider,
    providerKey,
    baseUrl,
    token,
    port,
    channels,
    skills,
    overrides: tree,
  })
  return { config, systemPrompt }
}
