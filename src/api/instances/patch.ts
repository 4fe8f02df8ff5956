import { and, eq, not, sql } from 'drizzle-orm'
import type { NewBudget } from '#budgets/schemas.ts'
import { setBudgets } from '#budgets/store.ts'
import type { Db } from '#database/client.ts'
import { type Instance, type Isolation, instances } from '#database/schema.ts'
import { egressColumns, type NewEgress } from '#egress/schemas.ts'
import { changedBy } from '#history/record.ts'
import { type AgentSettings, checkSettings } from '#instances/agent-settings.ts'
import { ExternalIdTaken, explainTaken, findByExternalId } from '#instances/external-id.ts'
import { type ChangeDeps, changeConfig } from '#instances/gateway/change.ts'
import { raiseGeneration } from '#instances/intent.ts'
import { requireIsolation } from '#instances/isolation.ts'
import type { EditableColumns } from '#instances/lease.ts'
import { type ResourceChanges, requireAllowed } from '#instances/resources.ts'
import { getInstance, isOwnedBy, sealSettings, unsealSettings } from '#instances/row.ts'
import { isNotTerminated } from '#instances/status.ts'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'

/** The number of labels that an instance can have. */
export const maxLabels = 16

/** What the agent does not see. */
interface Labels {
  name?: string
  external_id?: string | null
  metadata?: Record<string, string | null> | null
  resources?: ResourceChanges
  egress?: NewEgress | null
  budgets?: readonly NewBudget[]
}

export interface Patch extends Labels {
  model?: string | null
  instructions?: string | null
  openclaw_config?: Record<string, unknown> | null
  isolation?: Isolation
}

/** Throws AppError `lacks_permission` for a patch that only an organization key may make. */
export function requireNoneOfOrganization({ external_id: externalId, ...patch }: Patch): void {
  if (externalId !== undefined) {
    throw new AppError('lacks_permission', texts.externalIdOfOrganization, { param: 'external_id' })
  }
  for (const param of ['budgets', 'isolation', 'resources'] as const) {
    if (patch[param] === undefined) continue
    throw new AppError('lacks_permission', texts.limitOfOrganization(param), { param })
  }
}

/**
 * Changes what `patch` names of an instance, all or nothing. Throws what `changeConfig` and `setBudgets` throw, invalid
 * for more than 16 labels, and ExternalIdTaken.
 */
export async function patchInstance(
  deps: ChangeDeps,
  organizationId: string,
  id: string,
  patch: Patch,
): Promise<Instance> {
  const row = await getInstance(deps.db, organizationId, id)
  if (patch.resources) await requireAllowed(deps.db, organizationId, patch.resources, deps.regions.of(row).resources)
  const { external_id: externalId, isolation } = patch
  const { openclawConfig } = { ...unsealSettings(deps.vault, row), ...settingsOf(patch) }
  const hasTwoRooms = isolation === undefined || deps.regions.of(row).sandboxes.hasTwoRooms === true
  requireIsolation(isolation ?? row.isolation, openclawConfig, hasTwoRooms)
  if (isolation !== undefined && isolation !== row.isolation) {
    const { isolation: _, ...others } = patch
    await patchInstance(deps, organizationId, id, others)
    return changeIsolation(deps, organizationId, id, isolation)
  }
  if (typeof externalId !== 'string') return applyLimits(deps, await patchRow(deps, row, patch), patch)
  const holder = await findByExternalId(deps.db, organizationId, externalId)
  if (holder && holder.id !== row.id) throw new ExternalIdTaken(holder, externalId)
  const patched = await explainTaken(deps.db, organizationId, externalId, () => patchRow(deps, row, patch))
  return applyLimits(deps, patched, patch)
}

/** Has a worker give changed limits to the sandbox. After a crash before this, the watch of workers finds them. */
async function applyLimits({ db, queue }: ChangeDeps, row: Instance, { resources }: Patch): Promise<Instance> {
  if (resources === undefined) return row
  const [due] = await db
    .update(instances)
    .set({ ...raiseGeneration('changeResources'), changedBy: changedBy({ silent: true }) })
    .where(and(eq(instances.id, row.id), isNotTerminated))
    .returning()
  if (due) queue.enqueue()
  return due ?? row
}

async function patchRow(deps: ChangeDeps, row: Instance, patch: Patch): Promise<Instance> {
  const { id, organizationId } = row
  const columns = columnsOf(patch, row)
  const settings = settingsOf(patch)
  const { budgets } = patch
  const storeBudgets = async (tx: Db) => {
    if (budgets) await setBudgets(tx, { organizationId, id }, budgets)
  }
  if (Object.keys(settings).length === 0) {
    if (Object.keys(columns).length === 0 && !budgets) return row
    return deps.db.transaction(async (tx) => {
      const changed = await changeLabels(tx, organizationId, id, columns)
      await storeBudgets(tx)
      return changed
    })
  }
  const check = <T extends AgentSettings>(edited: T): T => {
    checkSettings(edited, row.openclawVersion, row.modelProvider)
    return edited
  }
  check({ ...unsealSettings(deps.vault, row), ...settings }) // before a running agent is held up
  return changeConfig(deps, organizationId, id, {
    edit: (stored) => check({ ...stored, ...settings }),
    columns: (latest) => ({
      ...columns,
      ...sealSettings(deps.vault, latest.id, settings),
    }),
    store: storeBudgets,
    whenNotRunning: 'store',
  })
}

/** A running agent is started again with the other isolation. */
async function changeIsolation({ db, queue }: ChangeDeps, organizationId: string, id: string, isolation: Isolation) {
  for (const running of [true, false]) {
    const is = eq(instances.desiredState, 'running')
    const [row] = await db
      .update(instances)
      .set({ isolation, ...(running ? raiseGeneration('restart') : { updatedAt: sql`now()` }), changedBy: changedBy() })
      .where(and(isOwnedBy(organizationId, id), isNotTerminated, running ? is : not(is)))
      .returning()
    if (row && running) queue.enqueue()
    if (row) return row
  }
  throw new AppError('instance_terminated', texts.isTerminated)
}

const settingsOf = ({ model, instructions, openclaw_config: openclawConfig }: Patch): Partial<AgentSettings> => ({
  ...(model !== undefined && { model }),
  ...(instructions !== undefined && { instructions }),
  ...(openclawConfig !== undefined && { openclawConfig }),
})

const columnsOf = (
  { name, external_id: externalId, metadata, resources, egress }: Labels,
  row: Instance,
): Partial<EditableColumns> => ({
  ...(name !== undefined && { name }),
  ...(externalId !== undefined && { externalId }),
  ...(resources !== undefined && { resources: mergedResources(resources) }),
  ...egressColumns(egress),
  ...(metadata !== undefined && { metadata: mergedLabels(metadata, row) }),
})

/** SQL merges them as it does labels. */
const mergedResources = (changes: ResourceChanges): EditableColumns['resources'] =>
  changes === null ? {} : sql`jsonb_strip_nulls(${instances.resources} || ${JSON.stringify(changes)}::jsonb)`

/** SQL merges them, so that changes of different labels at the same time do not undo each other. */
function mergedLabels(changes: Record<string, string | null> | null, row: Instance): EditableColumns['metadata'] {
  if (changes === null) return {}
  const merged = Object.values({ ...row.metadata, ...changes }).filter((value) => value !== null)
  if (merged.length > maxLabels)
    throw new AppError('invalid_value', texts.tooManyLabels(merged.length, maxLabels), { param: 'metadata' })
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
