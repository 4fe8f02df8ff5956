import { and, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type Instance, instances } from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { ExternalIdTaken, explainTaken, findByExternalId } from '#instances/external-id.ts'
import { type ChangeDeps, changeConfig } from '#instances/gateway/change.ts'
import type { EditableColumns } from '#instances/lease.ts'
import { getInstance, isOwnedBy, sealConfig } from '#instances/row.ts'
import { isNotTerminated } from '#instances/status.ts'
import { parseOverrides } from '#openclaw/overrides.ts'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'

/** The number of labels that an instance can have. */
export const maxLabels = 16

/** What the agent does not see. */
interface Labels {
  name?: string
  external_id?: string | null
  metadata?: Record<string, string | null> | null
}

export interface Patch extends Labels {
  openclaw_config?: Record<string, unknown> | null
}

/**
 * Changes what `patch` names of an instance, all or nothing. Throws what `changeConfig` throws, invalid for more than
 * 16 labels, and ExternalIdTaken.
 */
export async function patchInstance(
  deps: ChangeDeps,
  organizationId: string,
  id: string,
  patch: Patch,
): Promise<Instance> {
  const { external_id: externalId } = patch
  if (typeof externalId !== 'string') return patchUnexplained(deps, organizationId, id, patch)
  const holder = await findByExternalId(deps.db, organizationId, externalId)
  if (holder && holder.id !== id) throw new ExternalIdTaken(holder, externalId)
  return explainTaken(deps.db, organizationId, externalId, () => patchUnexplained(deps, organizationId, id, patch))
}

async function patchUnexplained(deps: ChangeDeps, organizationId: string, id: string, patch: Patch): Promise<Instance> {
  const { openclaw_config: openclawConfig, ...labels } = patch
  const row = await getInstance(deps.db, organizationId, id)
  const columns = columnsOf(labels, row)
  if (openclawConfig === undefined) {
    return Object.keys(columns).length === 0 ? row : changeLabels(deps.db, organizationId, id, columns)
  }
  if (openclawConfig) parseOverrides(openclawConfig) // throws before anything changes
  return changeConfig(deps, organizationId, id, {
    edit: (stored) => ({ ...stored, openclawConfig }),
    columns: (latest) => ({ ...columns, sealedConfig: sealConfig(deps.vault, latest.id, openclawConfig) }),
    whenNotRunning: 'store',
  })
}

const columnsOf = ({ name, external_id: externalId, metadata }: Labels, row: Instance): Partial<EditableColumns> => ({
  ...(name !== undefined && { name }),
  ...(externalId !== undefined && { externalId }),
  ...(metadata !== undefined && { metadata: mergedLabels(metadata, row) }),
})

/** SQL merges them, so that changes of different labels at the same time do not undo each other. */
function mergedLabels(changes: Record<string, string | null> | null, row: Instance): EditableColumns['metadata'] {
  if (changes === null) return {}
  const merged = Object.values({ ...row.metadata, ...changes }).filter((value) => value !== null)
  if (merged.length > maxLabels)
    throw new AppError('too_many_labels', texts.tooManyLabels(merged.length, maxLabels), { param: 'metadata' })
  return sql`jsonb_strip_nulls(${instances.metadata} || ${JSON.stringify(changes)}::jsonb)`
}

/** The agent does not see its labels: the row does not become due. */
async function changeLabels(
  db: Db,
  organizationId: string,
  id: string,
  columns: Partial<EditableColumns>,
): Promise<Instance> {
  const [row] = await db
    .update(instances)
    .set({ ...columns, updatedAt: sql`now()`, changedBy: changedBy() })
    .where(and(isOwnedBy(organizationId, id), isNotTerminated))
    .returning()
  if (row) return row
  throw new AppError('instance_terminated', texts.isTerminated)
}
