import { and, desc, eq, getTableColumns, isNull, or, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { after, cutPage } from '#database/page.ts'
import { type Instance, instances, type ModelProvider, organizations, providerKeys } from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { overriddenModel } from '#openclaw/overrides.ts'
import { defaultModel } from '#openclaw/releases.ts'
import { AppError } from '#platform/errors.ts'
import { isId } from '#platform/ids.ts'
import type { Vault } from '#platform/secrets.ts'
import { texts } from '#platform/texts.ts'
import { hasStatus, type InstanceStatus, isNotTerminated } from './status.ts'

/** How long a terminated instance can still be read. */
export const terminatedReadableDays = 30

const configPlace = (id: string) => `instances/${id}/sealed_config`
const tokenPlace = (id: string) => `instances/${id}/sealed_token`
export const providerKeyPlace = (organizationId: string, provider: ModelProvider) =>
  `provider_keys/${organizationId}.${provider}/sealed_key`

/** Limits a statement to the instance of that id, if it is the organization's. */
export const isOwnedBy = (organizationId: string, id: string) =>
  and(eq(instances.id, id), eq(instances.organizationId, organizationId))

const stillReadable = or(
  isNull(instances.terminatedAt),
  sql`${instances.terminatedAt} > now() - make_interval(days => ${terminatedReadableDays})`,
)

const columnName = (field: string) => field.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)

/** A row that came from raw SQL, as drizzle's own queries return it. */
function fromDriver(raw: Record<string, unknown>): Instance {
  const fields = Object.entries(getTableColumns(instances)).map(([name, column]) => {
    const value = raw[columnName(name)]
    return [name, value === null ? null : column.mapFromDriverValue(value)]
  })
  return Object.fromEntries(fields) as Instance
}

export interface NewInstance {
  id: string
  organizationId: string
  name: string
  metadata: Record<string, string>
  modelProvider: ModelProvider
  sandboxDriver: string
  openclawVersion: string
  openclawConfig: Record<string, unknown> | null
  gatewayToken: string
}

export const sealConfig = (vault: Vault, id: string, config: Record<string, unknown> | null) =>
  config && vault.seal(JSON.stringify(config), configPlace(id))

/** The configuration overrides as the caller sent them. */
export const unsealConfig = (vault: Vault, row: Instance): Record<string, unknown> | null =>
  row.sealedConfig === null ? null : JSON.parse(vault.unseal(row.sealedConfig, configPlace(row.id)))

/** The model that `openclaw` stands for at an agent, without its provider's name. */
export function ownModel(vault: Vault, row: Instance): string {
  const config = unsealConfig(vault, row)
  return (config && overriddenModel(config)) ?? defaultModel(row.openclawVersion, row.modelProvider)
}

export const unsealToken = (vault: Vault, row: Pick<Instance, 'id' | 'sealedToken'>): string =>
  vault.unseal(row.sealedToken, tokenPlace(row.id))

// Prepared once a connection: of all that writes, creating is what comes in floods. By the columns' names, because what
// is prepared with * fails once a newer version's migration has added one.
const createText = `
  WITH place AS (
    UPDATE organizations SET instance_count = instance_count + 1
    WHERE id = $2 AND deleted_at IS NULL AND (instance_limit IS NULL OR instance_count < instance_limit)
      AND EXISTS (SELECT 1 FROM provider_keys WHERE organization_id = $2 AND provider = $4)
    RETURNING id)
  INSERT INTO instances (id, organization_id, name, model_provider, sandbox_driver, openclaw_version,
                         sealed_config, sealed_token, metadata, changed_by, desired_state)
  SELECT $1, place.id, $3, $4, $5, $6, $7, $8, $9, $10, 'running' FROM place
  RETURNING ${Object.keys(getTableColumns(instances)).map(columnName).join(', ')}`

/**
 * Takes a place under the organization's limit and inserts the row, in one statement: no two creates can share the
 * last place. Throws invalid when the organization has no key for the provider, limit_reached when no place is free.
 */
export async function createInstance(db: Db, vault: Vault, row: NewInstance): Promise<Instance> {
  const { rows } = await db.$client.query({
    name: 'create_instance',
    text: createText,
    values: [
      row.id,
      row.organizationId,
      row.name,
      row.modelProvider,
      row.sandboxDriver,
      row.openclawVersion,
      sealConfig(vault, row.id, row.openclawConfig),
      vault.seal(row.gatewayToken, tokenPlace(row.id)),
      JSON.stringify(row.metadata),
      JSON.stringify(changedBy()),
    ],
  })
  if (rows[0]) return fromDriver(rows[0])
  throw await whyNotCreated(db, row)
}

async function whyNotCreated(db: Db, { organizationId, modelProvider }: NewInstance): Promise<AppError> {
  const [organization] = await db
    .select({ count: organizations.instanceCount, limit: organizations.instanceLimit, key: providerKeys.provider })
    .from(organizations)
    .leftJoin(
      providerKeys,
      and(eq(providerKeys.organizationId, organizations.id), eq(providerKeys.provider, modelProvider)),
    )
    .where(and(eq(organizations.id, organizationId), isNull(organizations.deletedAt)))
  if (!organization) return new AppError('unauthenticated', texts.unknownKey)
  const { count, limit, key } = organization
  if (!key) return new AppError('invalid', texts.noProviderKey(modelProvider))
  // Read a moment after the refusal: a place may have been freed meanwhile, or the limit lifted.
  return new AppError('limit_reached', texts.instanceLimit(Math.max(count, limit ?? 0), limit ?? count))
}

export interface InstanceFilter {
  status?: InstanceStatus
  name?: string
  limit?: number
  /** The id of the last one on the page before. */
  position?: string | undefined
}

/** Newest first; without a status all that are not terminated. `next` is the position of the page after this one. */
export async function listInstances(db: Db, organizationId: string, filter: InstanceFilter) {
  const { status, name, limit, position } = filter
  const listed = db
    .select()
    .from(instances)
    .where(
      and(
        eq(instances.organizationId, organizationId),
        status === undefined ? isNotTerminated : and(hasStatus[status], stillReadable),
        name === undefined ? undefined : sql`strpos(lower(${instances.name}), lower(${name})) > 0`,
        position === undefined ? undefined : after(instances, organizationId, position),
      ),
    )
    .orderBy(desc(instances.createdAt), desc(instances.id))
  return cutPage(limit === undefined ? await listed : await listed.limit(limit + 1), limit)
}

/** Throws not_found for a missing, malformed or foreign id alike. Terminated ones are found for 30 days. */
export async function getInstance(db: Db, organizationId: string, id: string): Promise<Instance> {
  const [row] = isId(id)
    ? await db
        .select()
        .from(instances)
        .where(and(isOwnedBy(organizationId, id), stillReadable))
    : []
  if (!row) throw new AppError('not_found', texts.instanceNotFound)
  return row
}

/** Changes what only people read; nothing of it has to be reconciled. Throws conflict when it is terminated. */
export async function relabelInstance(
  db: Db,
  organizationId: string,
  id: string,
  labels: { name?: string; metadata?: Record<string, string> },
): Promise<Instance> {
  const [row] = await db
    .update(instances)
    .set({ ...labels, updatedAt: sql`now()`, changedBy: changedBy() })
    .where(and(isOwnedBy(organizationId, id), isNotTerminated))
    .returning()
  if (row) return row
  throw new AppError('conflict', texts.isTerminated)
}
