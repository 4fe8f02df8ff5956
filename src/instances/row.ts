import { and, eq, getTableColumns, isNull, or, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type Instance, instances, type ModelProvider } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { overriddenModel } from '#openclaw/config/overrides.ts'
import { defaultModel } from '#openclaw/models/models.ts'
import { bareModel } from '#openclaw/models/providers.ts'
import { isId } from '#platform/ids.ts'
import type { Place, Vault } from '#platform/secrets.ts'
import type { AgentSettings } from './agent-settings.ts'

/** How long a terminated instance can still be read. */
export const terminatedReadableDays = 30

/** Whether an instance can be read: it is not terminated, or was terminated less than 30 days ago. */
export const isReadable = or(
  isNull(instances.terminatedAt),
  sql`${instances.terminatedAt} > now() - make_interval(days => ${terminatedReadableDays})`,
)

/** Whether an instance has this id and is the organization's. */
export const isOwnedBy = (organizationId: string, id: string) =>
  and(eq(instances.id, id), eq(instances.organizationId, organizationId))

/** The `detail` is the same for each id. Only `message` says that a text cannot be an id. */
export const instanceNotFound = (id: string): AppError =>
  new AppError('instance_not_found', texts.instanceNotFound, isId(id) ? {} : { hint: texts.noInstanceId(id) })

/** Throws not_found for a missing, malformed or foreign id alike. Terminated instances are found for 30 days. */
export async function getInstance(db: Db, organizationId: string, id: string): Promise<Instance> {
  const [row] = isId(id)
    ? await db
        .select()
        .from(instances)
        .where(and(isOwnedBy(organizationId, id), isReadable))
    : []
  if (!row) throw instanceNotFound(id)
  return row
}

/** The SQL name of a column. */
export const columnName = (field: string) => field.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)

/** The names of all columns, for raw SQL. */
export const columnNames = Object.keys(getTableColumns(instances)).map(columnName)

/** Converts a row of raw SQL to the form of Drizzle's queries. */
export function fromRawRow(raw: Record<string, unknown>): Instance {
  const fields = Object.entries(getTableColumns(instances)).map(([name, column]) => {
    const value = raw[columnName(name)]
    return [name, value === null ? null : column.mapFromDriverValue(value)]
  })
  return Object.fromEntries(fields) as Instance
}

const configPlace = (id: string): Place => `instances/${id}/sealed_config`
const instructionsPlace = (id: string): Place => `instances/${id}/sealed_instructions`
const tokenPlace = (id: string): Place => `instances/${id}/sealed_token`
const relayTokenPlace = (id: string): Place => `instances/${id}/sealed_relay_token`
export const providerKeyPlace = (organizationId: string, provider: ModelProvider): Place =>
  `provider_keys/${organizationId}.${provider}/sealed_key`

const sealConfig = (vault: Vault, id: string, config: Record<string, unknown> | null) =>
  config && vault.seal(JSON.stringify(config), configPlace(id))

const sealInstructions = (vault: Vault, id: string, instructions: string | null) =>
  instructions && vault.seal(instructions, instructionsPlace(id))

/** Seals the given settings of an agent into their columns. */
export const sealSettings = (
  vault: Vault,
  id: string,
  { model, instructions, approvals, openclawConfig }: Partial<AgentSettings>,
) => ({
  ...(model !== undefined && { model }),
  ...(approvals !== undefined && { approvals }),
  ...(instructions !== undefined && { sealedInstructions: sealInstructions(vault, id, instructions) }),
  ...(openclawConfig !== undefined && { sealedConfig: sealConfig(vault, id, openclawConfig) }),
})

/** The agent's settings as the caller sent them. */
export const unsealSettings = (
  vault: Vault,
  {
    id,
    model,
    approvals,
    sealedInstructions,
    sealedConfig,
  }: Pick<Instance, 'id' | 'model' | 'approvals' | 'sealedInstructions' | 'sealedConfig'>,
): AgentSettings => ({
  model,
  approvals,
  instructions: sealedInstructions === null ? null : vault.unseal(sealedInstructions, instructionsPlace(id)),
  openclawConfig: sealedConfig === null ? null : JSON.parse(vault.unseal(sealedConfig, configPlace(id))),
})

export const sealToken = (vault: Vault, id: string, token: string): string => vault.seal(token, tokenPlace(id))

export const unsealToken = (vault: Vault, row: Pick<Instance, 'id' | 'sealedToken'>): string =>
  vault.unseal(row.sealedToken, tokenPlace(row.id))

export const sealRelayToken = (vault: Vault, id: string, token: string): string =>
  vault.seal(token, relayTokenPlace(id))

/** Null for an instance that has no token yet. */
export const unsealRelayToken = (
  vault: Vault,
  { id, sealedRelayToken }: Pick<Instance, 'id' | 'sealedRelayToken'>,
): string | null => (sealedRelayToken === null ? null : vault.unseal(sealedRelayToken, relayTokenPlace(id)))

/** The model that `openclaw` maps to at an agent, without its provider's name. */
export function ownModel(vault: Vault, row: Instance): string {
  const { openclawConfig, model } = unsealSettings(vault, row)
  const own = (openclawConfig && overriddenModel(openclawConfig)) ?? (model && bareModel(model))
  return own ?? defaultModel(row.openclawVersion, row.modelProvider)
}
