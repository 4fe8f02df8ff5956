import { and, eq, isNull, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type Organization, organizations, stripeEvents } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { recordEvent } from '#history/record.ts'

/** How long one process has the claim on an organization; its two calls of Stripe take at most 10 s each. */
const claimSeconds = 60
/** Stripe limits the changes of a quantity in an hour, so a burst of creates and deletes becomes one change. */
const pauseSeconds = 30
/** Stripe repeats an event for 3 days at most. */
const eventRetentionDays = 30

const isNotDeleted = (id: string) => and(eq(organizations.id, id), isNull(organizations.deletedAt))

export async function getBillingOrganization(db: Db, id: string): Promise<Organization> {
  const [row] = await db.select().from(organizations).where(isNotDeleted(id))
  if (!row) throw new AppError('invalid_api_key', texts.unknownKey)
  return row
}

/** Stores the Stripe customer of an organization unless it has one; returns its customer. */
export async function storeCustomer(db: Db, id: string, customerId: string): Promise<string> {
  const [row] = await db
    .update(organizations)
    .set({
      stripeCustomerId: sql`coalesce(${organizations.stripeCustomerId}, ${customerId})`,
      billedCount: sql`coalesce(${organizations.billedCount}, 0)`,
    })
    .where(isNotDeleted(id))
    .returning({ customerId: organizations.stripeCustomerId })
  if (!row?.customerId) throw new AppError('invalid_api_key', texts.unknownKey)
  return row.customerId
}

/** Makes the next sync due at once, with all its attempts. A running sync will not be settled. */
const dueNow = { billedCount: null, billingAttempts: 0, nextBillingAt: sql`now()` }

/**
 * Stores an event, and makes the organization of its customer due in the same transaction. `isNew` is false for a
 * stored event; `organizationId` is null for an unknown customer.
 */
export function storeEvent(db: Db, event: { id: string; customerId: string | null }) {
  return db.transaction(async (tx) => {
    const isNew = (await tx.insert(stripeEvents).values({ id: event.id }).onConflictDoNothing().returning()).length > 0
    if (!isNew || event.customerId === null) return { isNew, organizationId: null }
    const [row] = await tx
      .update(organizations)
      .set(dueNow)
      .where(eq(organizations.stripeCustomerId, event.customerId))
      .returning({ id: organizations.id })
    return { isNew, organizationId: row?.id ?? null }
  })
}

export const deleteOldEvents = (db: Db) =>
  db.delete(stripeEvents).where(sql`${stripeEvents.receivedAt} < now() - make_interval(days => ${eventRetentionDays})`)

/** Whether the number of instances at Stripe is unknown or outdated. */
const isOutOfSync = sql`${organizations.stripeCustomerId} IS NOT NULL AND (${organizations.billedCount} IS NULL
  OR (${organizations.stripeSubscriptionId} IS NOT NULL AND ${organizations.billedCount} <> ${organizations.instanceCount}))`

/**
 * Claims an organization that is out of sync with Stripe, the given one or the longest due, and counts the attempt. No
 * other process claims it before its `nextBillingAt`. Null when none is due.
 */
export async function claimOutOfSync(db: Db, id?: string): Promise<Organization | null> {
  const due = db
    .select({ id: organizations.id })
    .from(organizations)
    .where(
      and(
        isOutOfSync,
        sql`${organizations.nextBillingAt} <= now()`,
        id === undefined ? undefined : eq(organizations.id, id),
      ),
    )
    .orderBy(organizations.nextBillingAt)
    .limit(1)
    .for('update', { skipLocked: true })
  const [row] = await db
    .update(organizations)
    .set({
      billingAttempts: sql`${organizations.billingAttempts} + 1`,
      // In whole milliseconds, like a Date: isStillClaimed compares it.
      nextBillingAt: sql`date_trunc('milliseconds', now()) + make_interval(secs => ${claimSeconds})`,
    })
    .where(eq(organizations.id, sql`(${due})`))
    .returning()
  return row ?? null
}

const isStillClaimed = (claimed: Organization) =>
  and(eq(organizations.id, claimed.id), eq(organizations.nextBillingAt, claimed.nextBillingAt))

type BillingFields = Pick<Organization, 'stripeSubscriptionId' | 'billedCount'> &
  Partial<Pick<Organization, 'subscriptionTier' | 'instanceLimit'>>

/** Stores the answer of Stripe and ends the claim. False, and nothing is stored, when an event made it due again. */
export function settleSync(db: Db, claimed: Organization, fields: BillingFields): Promise<boolean> {
  const { subscriptionTier } = fields
  const isTierChanged = subscriptionTier !== undefined && subscriptionTier !== claimed.subscriptionTier
  return db.transaction(async (tx) => {
    const settled = await tx
      .update(organizations)
      .set({
        ...fields,
        billingAttempts: 0,
        nextBillingAt: sql`now() + make_interval(secs => ${pauseSeconds})`,
        ...(isTierChanged && { updatedAt: sql`now()` }),
      })
      .where(isStillClaimed(claimed))
      .returning({ id: organizations.id })
    if (settled.length > 0 && isTierChanged) {
      await recordEvent(tx, {
        organizationId: claimed.id,
        type: 'organization.tier_changed',
        reason: subscriptionTier,
      })
    }
    return settled.length > 0
  })
}

/** Ends the claim; the next attempt is due after `seconds`. */
export async function postponeSync(db: Db, claimed: Organization, seconds: number): Promise<void> {
  await db
    .update(organizations)
    .set({ nextBillingAt: sql`now() + make_interval(secs => ${seconds})` })
    .where(isStillClaimed(claimed))
}
