import { and, asc, eq, isNull, ne, or, sql } from 'drizzle-orm'
import type { PgUpdateSetSource } from 'drizzle-orm/pg-core'
import type { Db } from '#database/client.ts'
import { type Organization, organizations, type Tier } from '#database/schema.ts'
import type { EventType } from '#history/event-types.ts'
import { recordEvent } from '#history/record.ts'
import { instanceLimits } from '#instances/tiers.ts'
import { poolOrganizationId } from '#instances/warm-pool.ts'
import { isId } from '#platform/ids.ts'
import { formatResources, type ResourceLimits } from '#settings/resources.ts'

/** All organizations that are not deleted, oldest first. */
export const listOrganizations = (db: Db): Promise<Organization[]> =>
  db
    .select()
    .from(organizations)
    .where(isNull(organizations.deletedAt))
    .orderBy(asc(organizations.createdAt), asc(organizations.id))

const existing = (id: string) => and(eq(organizations.id, id), isNull(organizations.deletedAt))

/**
 * Finds an organization of a customer by its id, or by its name if the name is unique: that of the warm pool can be
 * neither changed nor deleted. Throws an Error for the operator.
 */
export async function findOrganization(db: Db, idOrName: string): Promise<Organization> {
  const isMeant = isId(idOrName) ? eq(organizations.id, idOrName) : eq(organizations.name, idOrName)
  const [found, other] = await db
    .select()
    .from(organizations)
    .where(and(isMeant, isNull(organizations.deletedAt), ne(organizations.id, poolOrganizationId)))
    .limit(2)
  if (!found) {
    throw new Error(`There is no organization ${JSON.stringify(idOrName)}. npm run admin -- list-orgs shows all.`)
  }
  if (!other) return found
  throw new Error(
    `More than one organization is called ${JSON.stringify(idOrName)}. Give the id, which list-orgs shows.`,
  )
}

/**
 * Gives an organization a tier and its limit. A lower limit stops no instance. An organization with a subscription at
 * Stripe has the tier that it pays for: the operator can only give it `whale`, or take that back. Throws an Error for
 * the operator.
 */
export async function setTier(db: Db, id: string, tier: Tier): Promise<Organization> {
  const isFree = or(isNull(organizations.stripeSubscriptionId), eq(organizations.subscriptionTier, 'whale'))
  const row = await db.transaction(async (tx) => {
    const [changed] = await tx
      .update(organizations)
      .set({
        subscriptionTier: tier,
        instanceLimit: instanceLimits[tier],
        updatedAt: sql`now()`,
        // Without a known quantity, the next sync asks Stripe, which restores the paid tier after `whale`.
        billedCount: null,
        nextBillingAt: sql`now()`,
      })
      .where(and(existing(id), tier === 'whale' ? undefined : isFree))
      .returning()
    if (changed) await recordEvent(tx, { organizationId: id, type: 'organization.tier_changed', reason: tier })
    return changed
  })
  if (row) return row
  throw new Error(`The organization ${id} has the tier that it pays for at Stripe. Only whale can be given to it here.`)
}

/** Changes an organization, with its event. Throws an Error when the organization was deleted meanwhile. */
async function change(
  db: Db,
  id: string,
  set: PgUpdateSetSource<typeof organizations>,
  event: { type: EventType; reason?: string },
): Promise<Organization> {
  return db.transaction(async (tx) => {
    const [row] = await tx
      .update(organizations)
      .set({ ...set, updatedAt: sql`now()` })
      .where(existing(id))
      .returning()
    if (!row) throw new Error(`The organization ${id} was deleted meanwhile.`)
    await recordEvent(tx, { organizationId: id, ...event })
    return row
  })
}

/**
 * Sets the limit of instances of an organization; null means no limit. A lower limit stops no instance. The limit
 * stands until the tier changes, by `setTier` or by a change of the subscription.
 */
export const setLimit = (db: Db, id: string, instanceLimit: number | null): Promise<Organization> =>
  change(db, id, { instanceLimit }, { type: 'organization.limit_changed', reason: String(instanceLimit ?? 'none') })

/** Sets the maximum resources for instances of an organization; the general maximum applies to omitted ones. */
export const setMaxResources = (db: Db, id: string, maxResources: Partial<ResourceLimits>): Promise<Organization> =>
  change(
    db,
    id,
    { maxResources },
    { type: 'organization.limit_changed', reason: formatResources(maxResources) || 'the same resources as all' },
  )

/**
 * Suspends or resumes an organization. All keys of a suspended organization are refused within a second, and workers
 * stop its instances within seconds. After a resume they restart those instances.
 */
export const setSuspended = (db: Db, id: string, isSuspended: boolean): Promise<Organization> =>
  change(
    db,
    id,
    { suspendedAt: isSuspended ? sql`now()` : null },
    { type: isSuspended ? 'organization.suspend' : 'organization.resume' },
  )
