import { and, asc, eq, isNull, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type Channel, channels, type Instance, type Skill, skills } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import type { AgentSettings } from '#instances/agent-settings.ts'
import { unsealRelayToken, unsealSettings, unsealToken } from '#instances/row.ts'
import { type ChannelSettings, type GatewayConfig, renderConfig } from '#openclaw/config/config.ts'
import { parseOverrides } from '#openclaw/config/overrides.ts'
import { identityOf, type WorkspaceDocuments } from '#openclaw/config/workspace-documents.ts'
import type { GatewaySecrets } from '#openclaw/gateway/gateway-secrets.ts'
import { secretsPath, workspacePath } from '#openclaw/inside/launch.ts'
import { toGatewayModel } from '#openclaw/models/model.ts'
import type { Place, Vault } from '#platform/secrets.ts'
import type { SandboxPaths } from '#sandbox/driver.ts'
import { relayPath } from './relay-url.ts'
import { egressToken } from './tokens.ts'

/** The settings that a gateway's configuration is rendered from, with secrets in clear text. */
export interface UnsealedInstance extends AgentSettings {
  token: string
  /** The token that the gateway sends to the relay in place of a provider's key. Null before its first start. */
  relayToken: string | null
  channels: readonly ChannelSettings[]
  skills: Readonly<Record<string, Record<string, unknown>>>
  /** Models that turns have asked for and that no table lists. */
  unlistedModels: readonly string[]
}

export const channelConfigPlace = (instanceId: string, channel: string): Place =>
  `channels/${instanceId}.${channel}/sealed_config`
export const skillSettingsPlace = (instanceId: string, name: string): Place =>
  `skills/${instanceId}.${name}/sealed_settings`

/** The settings of a stored channel. */
export const unsealChannel = (
  vault: Vault,
  { instanceId, channel, enabled, sealedConfig }: Channel,
): ChannelSettings => ({
  channel,
  enabled,
  config: JSON.parse(vault.unseal(sealedConfig, channelConfigPlace(instanceId, channel))),
})

/** The stored settings of a skill. */
export const unsealSkill = (
  vault: Vault,
  { instanceId, name, sealedSettings }: Skill,
): Record<string, unknown> & { shell_env?: string[] } =>
  sealedSettings === null ? {} : JSON.parse(vault.unseal(sealedSettings, skillSettingsPlace(instanceId, name)))

/** The bound of the settings of all channels and skills of an instance: its mask and each start take all of them. */
const maxSettingsBytes = 256 * 1024
const sealedOfPlain = 4 / 3

/**
 * Checks the stored settings of an instance after a write, in its transaction. Throws AppError `invalid_value` when
 * they exceed 256 KiB together.
 */
export async function requireSettingsBound(tx: Db, instanceId: string): Promise<void> {
  const { rows } = await tx.execute<{ bytes: string }>(sql`
    SELECT coalesce(sum(octet_length(sealed)), 0) AS bytes FROM (
      SELECT sealed_config AS sealed FROM channels WHERE instance_id = ${instanceId}
      UNION ALL SELECT sealed_settings FROM skills WHERE instance_id = ${instanceId}
    ) AS settings`)
  if (Number(rows[0]?.bytes) > maxSettingsBytes * sealedOfPlain) {
    throw new AppError('invalid_value', texts.settingsTooLarge(maxSettingsBytes / 1024))
  }
}

/** Only channels that the gateway has accepted: refused settings would keep it from starting. */
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
    rows.flatMap((row) => (row.sealedSettings === null ? [] : [[row.name, unsealSkill(vault, row)]])),
  )
}

/** Reads the stored settings of an instance. */
export async function unsealInstance(db: Db, vault: Vault, row: Instance): Promise<UnsealedInstance> {
  return {
    token: unsealToken(vault, row),
    relayToken: unsealRelayToken(vault, row),
    ...unsealSettings(vault, row),
    channels: await unsealChannels(db, vault, row.id),
    skills: await unsealSkills(db, vault, row.id),
    unlistedModels: row.unlistedModels,
  }
}

function proxyFor(id: string, relayToken: string | null, { proxy, proxyAsksWho }: SandboxPaths): string | null {
  if (proxy === undefined) return null
  if (!proxyAsksWho) return proxy
  if (relayToken === null) return null
  return Object.assign(new URL(proxy), { username: id, password: egressToken(relayToken) }).href
}

/** The secrets of a gateway that is about to start. */
export function secretsFor(
  id: string,
  { token, relayToken }: Pick<UnsealedInstance, 'token' | 'relayToken'>,
  paths: SandboxPaths,
): GatewaySecrets {
  if (relayToken === null) throw new Error('a gateway needs a token of the relay before it starts')
  const proxyUrl = proxyFor(id, relayToken, paths)
  return { gatewayToken: token, relayToken, ...(paths.proxyAsksWho && proxyUrl !== null && { proxyUrl }) }
}

/** Renders the gateway's configuration, and the documents of its workspace. */
export function renderGateway(
  row: Pick<Instance, 'id' | 'name' | 'openclawVersion' | 'modelProvider'>,
  unsealed: UnsealedInstance,
  { relayUrl, paths }: { relayUrl: string; paths: SandboxPaths },
): { config: GatewayConfig; documents: WorkspaceDocuments } {
  const { relayToken, model, instructions, approvals, openclawConfig, channels, skills, unlistedModels } = unsealed
  const { tree, systemPrompt } = parseOverrides(openclawConfig ?? {})
  const { openclawVersion: release, modelProvider: provider } = row
  const config = renderConfig({
    release,
    provider,
    baseUrl: `${relayUrl}${relayPath(provider)}`,
    secretsFile: `${paths.home}/${secretsPath}`,
    port: paths.port,
    room: paths.room ? { ...paths.room, workspace: `${paths.home}/${workspacePath}` } : null,
    proxyUrl: proxyFor(row.id, relayToken, paths),
    channels,
    skills,
    model: model === null ? null : toGatewayModel(provider, model),
    unlistedModels,
    approvals,
    overrides: tree,
  })
  return { config, documents: { 'SOUL.md': systemPrompt ?? instructions, 'IDENTITY.md': identityOf(row.name) } }
}
