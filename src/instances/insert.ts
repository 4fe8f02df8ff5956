import { and, eq, getTableColumns, isNull } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type Instance, type Isolation, instances, organizations, providerKeys } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { changedBy } from '#history/record.ts'
import { ExternalIdTaken, explainTaken, findByExternalId } from './external-id.ts'
import { readRegionState, stateName } from './region-states.ts'
import { columnName, columnNames, fromRawRow } from './row.ts'

/** The columns that every new row sets, including null ones. */
type NewColumns = Pick<
  typeof instances.$inferInsert,
  'modelProvider' | 'openclawVersion' | 'sandboxDriver' | 'sealedToken'
> &
  Partial<typeof instances.$inferInsert>

export interface NewInstance {
  id: string
  organizationId: string
  /** The name of its region, also if there is only one. */
  regionName: string
  /** Null: the organization's isolation applies. */
  isolation: Isolation | null
  /** All other columns. Every call sets the same ones, because the statement is prepared. */
  columns: NewColumns
}

const tableColumns = getTableColumns(instances)

// Prepared once per connection, because creates are the most frequent writes. RETURNING names the columns: a prepared
// `*` fails after a newer version's migration has added a column.
const insertOf = (columns: readonly string[]) => `
  WITH counted AS (
    UPDATE organizations SET instance_count = instance_count + 1
    WHERE id = $2 AND deleted_at IS NULL AND (instance_limit IS NULL OR instance_count < instance_limit)
      AND EXISTS (SELECT 1 FROM provider_keys WHERE organization_id = $2 AND provider = $3)
      AND NOT EXISTS (SELECT 1 FROM installation WHERE name = $4 AND value <> 'open')
    RETURNING id, isolation)
  INSERT INTO instances (id, organization_id, desired_state, isolation, changed_by, ${columns.join(', ')})
  SELECT $1, counted.id, 'running', coalesce($5, counted.isolation), $6, ${columns.map((_, index) => `$${index + 7}`).join(', ')}
  FROM counted
  RETURNING ${columnNames.join(', ')}`

/**
 * Inserts the row of an instance and counts it under the organization's limit in one statement, so that concurrent
 * creates never exceed the limit. The row is due; the caller enqueues it after the commit. Throws ExternalIdTaken, also
 * for an organization at its limit; invalid without a key for the provider; `region_closed` when the region takes no
 * new instances; limit_reached; unauthenticated when the organization is deleted.
 */
export async function insertInstance(
  db: Db,
  row: NewInstance,
  { hasBilling }: { hasBilling: boolean },
): Promise<Instance> {
  const { organizationId } = row
  const externalId = row.columns.externalId ?? null
  const created =
    externalId === null
      ? await insertUnderLimit(db, row)
      : // A violation by a race rolls the nested transaction back, and with it the count under the limit.
        await explainTaken(db, organizationId, externalId, () => db.transaction((tx) => insertUnderLimit(tx, row)))
  if (created) return created
  const taken = externalId === null ? null : await findByExternalId(db, organizationId, externalId)
  throw taken ? new ExternalIdTaken(taken, taken.externalId ?? '') : await refusalOf(db, row, hasBilling)
}

/** Null when the organization may not create the instance. */
async function insertUnderLimit(db: Db, row: NewInstance): Promise<Instance | null> {
  const { id, organizationId, columns, isolation, regionName } = row
  const names = Object.keys(columns) as (keyof typeof tableColumns & keyof NewColumns)[]
  const toDriver = (name: (typeof names)[number]) =>
    columns[name] === null ? null : tableColumns[name].mapToDriverValue(columns[name])
  const { rows } = await db.$client.query({
    name: 'insert_instance',
    text: insertOf(names.map(columnName)),
    values: [
      ...[id, organizationId, columns.modelProvider, stateName(regionName), isolation, JSON.stringify(changedBy())],
      ...names.map(toDriver),
    ],
  })
  return rows[0] ? fromRawRow(rows[0]) : null
}

async function refusalOf(db: Db, row: NewInstance, hasBilling: boolean): Promise<AppError> {
  const { organizationId } = row
  const { modelProvider } = row.columns
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
  // Both were read after the refusal: an instance may have been deleted or the limit raised in between.
  const reached = texts.instanceLimit(Math.max(count, limit ?? 0), limit ?? count)
  return new AppError(
    'instance_limit_reached',
    hasBilling ? reached : `${reached} ${texts.limitWithoutBilling(organizationId)}`,
  )
}
