import { and, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type Instance, instances } from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { type ChangeDeps, changeConfig } from '#instances/gateway/change.ts'
import { getInstance, isOwnedBy, sealConfig } from '#instances/row.ts'
import { isNotTerminated } from '#instances/status.ts'
import { parseOverrides } from '#openclaw/overrides.ts'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'

interface Labels {
  name?: string
  metadata?: Record<string, string>
}

export interface Patch extends Labels {
  openclaw_config?: Record<string, unknown> | null
}

/**
 * Changes the name, the metadata and the configuration overrides of an instance, all or nothing. Throws what
 * `changeConfig` throws.
 */
export async function patchInstance(
  deps: ChangeDeps,
  organizationId: string,
  id: string,
  patch: Patch,
): Promise<Instance> {
  const { openclaw_config: openclawConfig, ...labels } = patch
  if (openclawConfig === undefined) {
    const row = await getInstance(deps.db, organizationId, id)
    return Object.keys(labels).length === 0 ? row : changeLabels(deps.db, organizationId, id, labels)
  }
  if (openclawConfig) parseOverrides(openclawConfig) // throws before anything changes
  return changeConfig(deps, organizationId, id, {
    edit: (stored) => ({ ...stored, openclawConfig }),
    columns: (row) => ({ ...labels, sealedConfig: sealConfig(deps.vault, row.id, openclawConfig) }),
    whenNotRunning: 'store',
  })
}

/** The agent does not see its labels: the row does not become due. */
async function changeLabels(db: Db, organizationId: string, id: string, labels: Labels): Promise<Instance> {
  const [row] = await db
    .update(instances)
    .set({ ...labels, updatedAt: sql`now()`, changedBy: changedBy() })
    .where(and(isOwnedBy(organizationId, id), isNotTerminated))
    .returning()
  if (row) return row
  throw new AppError('instance_terminated', texts.isTerminated)
}
