import { and, eq, isNull } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import {
  type EgressPolicy,
  type Instance,
  type Isolation,
  type ModelProvider,
  organizations,
  providerKeys,
} from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { AppError } from '#platform/errors.ts'
import type { Vault } from '#platform/secrets.ts'
import { texts } from '#platform/texts.ts'
import type { ResourceLimits } from '#settings/resources.ts'
import type { AgentSettings } from './agent-settings.ts'
import { ExternalIdTaken, explainTaken, findByExternalId } from './external-id.ts'
import { readRegionState, stateName } from './region-states.ts'
import { columnNames, fromRawRow, sealConfig, sealInstructions, sealToken } from './row.ts'

export interface NewInstance extends AgentSettings {
  id: string
  organizationId: string
  name: string
  externalId: string | null
  metadata: Record<string, string>
  resources: Partial<ResourceLimits>
  egress: EgressPolicy | null
  modelProvider: ModelProvider
  sandboxDriver: string
  /** What the row remembers as its region; null for the only one. */
  region: string | null
  /** The name of its region, also of the only one. */
  regionName: string
  openclawVersion: string
  /** Null for that of the organization. */
  isolation: Isolation | null
  gatewayToken: string
}

// Prepared once a connection: of all writes, creates come in the largest numbers. RETURNING names the columns because a
// prepared `*` fails after a newer version's migration has added a column.
const insert = `
  WITH counted AS (
    UPDATE organizations SET instance_count = instance_count + 1
    WHERE id = $2 AND deleted_at IS NULL AND (instance_limit IS NULL OR instance_count < instance_limit)
      AND EXISTS (SELECT 1 FROM provider_keys WHERE organization_id = $2 AND provider = $4)
      AND NOT EXISTS (SELECT 1 FROM installation WHERE name = $18 AND value <> 'open')
    RETURNING id, isolation)
  INSERT INTO instances (id, organization_id, name, model_provider, sandbox_driver, openclaw_version,
                         sealed_config, sealed_token, metadata, changed_by, external_id, model,
                         sealed_instructions, resources, isolation, egress, region, desired_state)
  SELECT $1, counted.id, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, coalesce($15, counted.isolation),
         $16, $17, 'running'
  FROM counted
  RETURNING ${columnNames.join(', ')}`

/**
 * Inserts the row of an instance and counts it under the organization's limit, in one statement: concurrent creates
 * never exceed the limit. The row is due; the caller enqueues it after the commit. Throws ExternalIdTaken, also for an
 * organization that may not create another; invalid when it has no key for the provider; `region_closed` when the
 * region takes no new instances; limit_reached; unauthenticated when it is deleted.
 */
export async function createInstance(
  db: Db,
  vault: Vault,
  row: NewInstance,
  { hasBilling }: { hasBilling: boolean },
): Promise<Instance> {
  const { organizationId, externalId } = row
  const created =
    externalId === null
      ? await insertUnderLimit(db, vault, row)
      : // The violation of a race rolls the nested transaction back, and the place under the limit with it.
        await explainTaken(db, organizationId, externalId, () =>
          db.transaction((tx) => insertUnderLimit(tx, vault, row)),
        )
  if (created) return created
  const taken = externalId === null ? null : await findByExternalId(db, organizationId, externalId)
  throw taken ? new ExternalIdTaken(taken, taken.externalId ?? '') : await refusalOf(db, row, hasBilling)
}

/** Null when the organization may not create the instance. */
async function insertUnderLimit(db: Db, vault: Vault, row: NewInstance): Promise<Instance | null> {
  const { rows } = await db.$client.query({
    name: 'create_instance',
    text: insert,
    values: [
      row.id,
      row.organizationId,
      row.name,
      row.modelProvider,
      row.sandboxDriver,
      row.openclawVersion,
      sealConfig(vault, row.id, row.openclawConfig),
      sealToken(vault, row.id, row.gatewayToken),
      JSON.stringify(row.metadata),
      JSON.stringify(changedBy()),
      row.externalId,
      row.model,
      sealInstructions(vault, row.id, row.instructions),
      JSON.stringify(row.resources),
      row.isolation,
      row.egress && JSON.stringify(row.egress),
      row.region,
      stateName(row.regionName),
    ],
  })
  return rows[0] ? fromRawRow(rows[0]) : null
}

async function refusalOf(db: Db, row: NewInstance, hasBilling: boolean): Promise<AppError> {
  const { organizationId, modelProvider } = row
  const [organization] = await db
    .select({ count: organizations.instanceCount, limit: organizations.instanceLimit, key: providerKeys.provider })
    .from(organizations)
    .leftJoin(
      providerKeys,
      and(eq(providerKeys.organizationId, organizations.id), eq(providerKeys.provider, modelProvider)),
    )
    .where(and(eq(organizations.id, organizationId), isNull(organizations.deletedAt)))
  if (!organization) return new AppError('invalid_api_key', texts.unknownKey)
  const { count, limit, key } = organization
  if (!key) return new AppError('no_provider_key', texts.noProviderKey(modelProvider), { param: 'model_provider' })
  if ((await readRegionState(db, row.regionName)) !== 'open')
    return new AppError('region_closed', texts.regionTakesNone(row.regionName), { param: 'region' })
  // Both were read after the refusal: in between, an instance may have been deleted or the limit raised.
  const reached = texts.instanceLimit(Math.max(count, limit ?? 0), limit ?? count)
  return new AppError(
    'instance_limit_reached',
    hasBilling ? reached : `${reached} ${texts.limitWithoutBilling(organizationId)}`,
  )
}
