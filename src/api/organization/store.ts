import { isDeepStrictEqual } from 'node:util'
import { and, eq, isNotNull, isNull, or, sql } from 'drizzle-orm'
import { issueOrganizationKey } from '#api/keys/store.ts'
import type { NewBudget } from '#budgets/schemas.ts'
import { readOwnBudgets, setBudgets } from '#budgets/store.ts'
import { type Db, retryOnDeadlock } from '#database/client.ts'
import {
  apiKeys,
  type Isolation,
  instances,
  type ModelProvider,
  modelProviders,
  type Organization,
  organizations,
  providerKeys,
  type Tier,
} from '#database/schema.ts'
import { egressColumns, type NewEgress } from '#egress/schemas.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { changedBy, recordEvent } from '#history/record.ts'
import { raiseGeneration } from '#instances/intent.ts'
import { maximaOf, ownResources, type ResourceChanges, requireWithin } from '#instances/resources.ts'
import { providerKeyPlace } from '#instances/row.ts'
import { isDue } from '#instances/status.ts'
import { instanceLimits } from '#instances/tiers.ts'
import { newId } from '#platform/ids.ts'
import type { Vault } from '#platform/secrets.ts'
import type { ResourceSettings } from '#settings/resources.ts'

/**
 * Makes the running and starting instances of a provider due. The relay has the new key already. Workers make OpenClaw
 * forget a refusal of the former key: otherwise it pauses requests for minutes. Returns whether there are any.
 */
async function makeKeyUsersDue(tx: Db, organizationId: string, provider: ModelProvider): Promise<boolean> {
  const { rowCount } = await tx
    .update(instances)
    .set({
      ...raiseGeneration('changeProviderKey'),
      changedBy: changedBy({ type: 'instance.due', reason: 'The key of its model provider was changed.' }),
    })
    .where(
      and(
        eq(instances.organizationId, organizationId),
        eq(instances.modelProvider, provider),
        eq(instances.desiredState, 'running'),
        or(isNotNull(instances.readyAt), isDue),
      ),
    )
  return (rowCount ?? 0) > 0
}

/**
 * Creates an organization and its first key, in one transaction. The key itself is returned once and never stored. With
 * `isOnly` throws AppError `signup_closed` when there is another one.
 */
export async function signUp(
  db: Db,
  name: string,
  tier: Tier,
  { isOnly }: { isOnly: boolean },
): Promise<{ organization: Organization; key: string }> {
  const id = newId()
  const { key, row } = issueOrganizationKey(id)
  const organization = await db.transaction(async (tx) => {
    if (isOnly) {
      await tx.execute(sql`LOCK TABLE organizations IN SHARE ROW EXCLUSIVE MODE`)
      if ((await tx.$count(organizations, isNull(organizations.deletedAt))) > 0)
        throw new AppError('signup_closed', texts.oneOrganization)
    }
    const [created] = await tx
      .insert(organizations)
      .values({ id, name, subscriptionTier: tier, instanceLimit: instanceLimits[tier] })
      .returning()
    await tx.insert(apiKeys).values(row)
    await recordEvent(tx, { organizationId: row.organizationId })
    return created as Organization
  })
  return { organization, key }
}

const existing = (id: string) => and(eq(organizations.id, id), isNull(organizations.deletedAt))

/** A stored key, without the key. */
export interface StoredKey {
  provider: ModelProvider
  setAt: Date
  refusedAt: Date | null
}

/** The stored keys, in the documented order of their providers. */
async function keysOf(db: Db, organizationId: string): Promise<StoredKey[]> {
  const { provider, updatedAt: setAt, refusedAt } = providerKeys
  const stored = await db
    .select({ provider, setAt, refusedAt })
    .from(providerKeys)
    .where(eq(providerKeys.organizationId, organizationId))
  return modelProviders.flatMap((provider) => stored.filter((row) => row.provider === provider))
}

/** Throws AppError `unauthenticated` when the organization was deleted meanwhile. */
export async function getOrganization(db: Db, id: string) {
  const [organization] = await db.select().from(organizations).where(existing(id))
  if (!organization) throw new AppError('invalid_api_key', texts.unknownKey)
  return { organization, keys: await keysOf(db, id), budgets: await readOwnBudgets(db, id) }
}

export interface OrganizationPatch {
  name?: string
  /** null and the empty text remove a key. */
  model_api_keys?: Partial<Record<ModelProvider, string | null>>
  resources?: ResourceChanges
  isolation?: Isolation
  egress?: NewEgress | null
  budgets?: readonly NewBudget[]
}

/**
 * Renames the organization and sets provider keys and budgets, in one transaction; an empty key removes the stored one.
 * Also returns whether instances need a changed key: their generation is raised in the same transaction. Throws the
 * errors of `setBudgets`, and AppError `unauthenticated` when the organization was deleted meanwhile.
 */
export function patchOrganization(
  db: Db,
  vault: Vault,
  id: string,
  patch: OrganizationPatch,
  settings: ResourceSettings,
) {
  const change = async (tx: Db) => {
    const [before] = await tx.select().from(organizations).where(existing(id)).for('update')
    if (!before) throw new AppError('invalid_api_key', texts.unknownKey)
    const { name = before.name, isolation = before.isolation } = patch
    const { egress = before.egress } = egressColumns(patch.egress)
    requireWithin(patch.resources ?? null, maximaOf(before, settings))
    const resources = patch.resources === null ? {} : ownResources({ ...before.resources, ...patch.resources })
    const columns = { name, isolation, resources, egress }
    let hasChanged = !isDeepStrictEqual({ ...before, ...columns }, before)
    let isDue = false
    for (const provider of modelProviders) {
      const key = patch.model_api_keys?.[provider]
      if (key === undefined) continue
      if (!(await changeProviderKey(tx, vault, id, provider, key ?? ''))) continue
      hasChanged = true
      if (await makeKeyUsersDue(tx, id, provider)) isDue = true
    }
    if (patch.budgets) await setBudgets(tx, { organizationId: id, id }, patch.budgets)
    const organization = hasChanged ? await touch(tx, id, columns) : before
    await recordEvent(tx, { organizationId: id })
    return { organization, keys: await keysOf(tx, id), budgets: await readOwnBudgets(tx, id), isDue }
  }
  // This locks many instances. Other statements lock many in another order, so a deadlock is possible.
  return retryOnDeadlock(() => db.transaction(change))
}

async function touch(
  tx: Db,
  id: string,
  columns: Pick<Organization, 'name' | 'isolation' | 'resources' | 'egress'>,
): Promise<Organization> {
  const [changed] = await tx
    .update(organizations)
    .set({ ...columns, updatedAt: sql`now()` })
    .where(eq(organizations.id, id))
    .returning()
  return changed as Organization
}

/** Returns whether the stored key has changed. The caller has locked the row of the organization. */
async function changeProviderKey(tx: Db, vault: Vault, organizationId: string, provider: ModelProvider, key: string) {
  const stored = and(eq(providerKeys.organizationId, organizationId), eq(providerKeys.provider, provider))
  if (key === '') return (await tx.delete(providerKeys).where(stored).returning()).length > 0
  const place = providerKeyPlace(organizationId, provider)
  const [before] = await tx.select().from(providerKeys).where(stored)
  if (before && vault.unseal(before.sealedKey, place) === key) return false
  const sealedKey = vault.seal(key, place)
  await tx
    .insert(providerKeys)
    .values({ organizationId, provider, sealedKey })
    .onConflictDoUpdate({
      target: [providerKeys.organizationId, providerKeys.provider],
      set: { sealedKey, updatedAt: sql`now()`, refusedAt: null },
    })
  return true
}
