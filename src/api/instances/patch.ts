import type { Static } from '@sinclair/typebox'
import { and, eq, not, sql } from 'drizzle-orm'
import { setBudgets } from '#budgets/store.ts'
import type { Db } from '#database/client.ts'
import { type Instance, type Isolation, instances } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { changedBy } from '#history/record.ts'
import { type AgentSettings, checkSettings } from '#instances/agent-settings.ts'
import { ExternalIdTaken, explainTaken, findByExternalId } from '#instances/external-id.ts'
import { type ChangeDeps, changeConfig } from '#instances/gateway/change.ts'
import { raiseGeneration } from '#instances/intent.ts'
import { requireIsolation } from '#instances/isolation.ts'
import type { EditableColumns } from '#instances/lease.ts'
import { requireAllowed } from '#instances/resources.ts'
import { getInstance, isOwnedBy, unsealSettings } from '#instances/row.ts'
import { isNotTerminated } from '#instances/status.ts'
import { changedColumns, fieldsOfOrganization, isAppliedLater, settingsOf } from './columns.ts'
import type { PatchInstance } from './requests.ts'

export type Patch = Static<typeof PatchInstance>

/** Throws AppError `lacks_permission` for a patch that only an organization key may make. */
export function requireNoneOfOrganization(patch: Patch): void {
  const [first] = fieldsOfOrganization(patch)
  if (!first) return
  const { param, reason } = first
  const text = reason === 'identity' ? texts.externalIdOfOrganization : texts.limitOfOrganization(param)
  throw new AppError('lacks_permission', text, { param })
}

/**
 * Applies `patch` to an instance, all or nothing. Throws the errors of `changeConfig` and `setBudgets`, invalid for
 * more than 16 labels, and ExternalIdTaken.
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
  const changed = { ...unsealSettings(deps.vault, row), ...settingsOf(patch) }
  const hasTwoRooms = isolation === undefined || deps.regions.of(row).sandboxes.hasTwoRooms === true
  requireIsolation(isolation ?? row.isolation, changed, hasTwoRooms)
  if (isolation !== undefined && isolation !== row.isolation) {
    const { isolation: _, ...others } = patch
    await patchInstance(deps, organizationId, id, others)
    return changeIsolation(deps, organizationId, id, isolation)
  }
  if (typeof externalId !== 'string') return applyLater(deps, await patchRow(deps, row, patch), patch)
  const holder = await findByExternalId(deps.db, organizationId, externalId)
  if (holder && holder.id !== row.id) throw new ExternalIdTaken(holder, externalId)
  const patched = await explainTaken(deps.db, organizationId, externalId, () => patchRow(deps, row, patch))
  return applyLater(deps, patched, patch)
}

/** Makes a running instance due, so that a worker gives the agent its changed fields. */
async function applyLater({ db, queue }: ChangeDeps, row: Instance, patch: Patch): Promise<Instance> {
  if (!isAppliedLater(patch)) return row
  const [due] = await db
    .update(instances)
    .set({ ...raiseGeneration('changeAgent'), changedBy: changedBy({ silent: true }) })
    .where(and(eq(instances.id, row.id), isNotTerminated))
    .returning()
  if (due) queue.enqueue()
  return due ?? row
}

async function patchRow(deps: ChangeDeps, row: Instance, patch: Patch): Promise<Instance> {
  const { id, organizationId } = row
  const settings = settingsOf(patch)
  const { budgets } = patch
  const storeBudgets = async (tx: Db) => {
    if (budgets) await setBudgets(tx, { organizationId, id }, budgets)
  }
  const columnsFor = (latest: Instance) => changedColumns(patch, { id, vault: deps.vault, row: latest })
  if (Object.keys(settings).length === 0) {
    const columns = columnsFor(row)
    if (Object.keys(columns).length === 0 && !budgets) return row
    return deps.db.transaction(async (tx) => {
      const changed = await changeColumns(tx, organizationId, id, columns)
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
    columns: columnsFor,
    store: storeBudgets,
    whenNotRunning: 'store',
  })
}

/** A running agent is restarted with the other isolation. One whose gateway is frozen is started anew. */
async function changeIsolation({ db, queue }: ChangeDeps, organizationId: string, id: string, isolation: Isolation) {
  for (const running of [true, false]) {
    const is = eq(instances.desiredState, 'running')
    const [row] = await db
      .update(instances)
      .set({
        isolation,
        ...(running ? raiseGeneration('restart') : { updatedAt: sql`now()`, relayTokenHash: null }),
        changedBy: changedBy(),
      })
      .where(and(isOwnedBy(organizationId, id), isNotTerminated, running ? is : not(is)))
      .returning()
    if (row && running) queue.enqueue()
    if (row) return row
  }
  throw new AppError('instance_terminated', texts.isTerminated)
}

/** Changes columns outside of the gateway's configuration. */
async function changeColumns(
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
