import { and, eq, isNull, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type Organization, organizations, stripeEvents } from '#database/schema.ts'
import { recordEvent } from '#history/record.ts'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'

/** How long whoever asks Stripe has the row for itself; its two calls of 10 s end before that. */
const leaseSeconds = 60
/** Stripe limits how often an hour a quantity may change: bursts of creates and deletes are told as one. */
const pauseSeconds = 30
/** Stripe repeats an event for 3 days. */
const eventsKeptDays = 30

const existing = (id: string) => and(eq(organizations.id, id), isNull(organizations.deletedAt))

export async function getBillingOrganization(db: Db, id: string): Promise<Organization> {
  const [row] = await db.select().from(organizations).where(existing(id))
  if (!row) throw new AppError('unauthenticated', texts.unknownKey)
  return row
}

/** Remembers an organization's customer at Stripe, unless another request was first; answers the one that holds. */
export async function rememberCustomer(db: Db, id: string, customerId: string): Promise<string> {
  const [row] = await db
    .update(organizations)
    .set({
      stripeCustomerId: sql`coalesce(${organizations.stripeCustomerId}, ${customerId})`,
      billedCount: sql`coalesce(${organizations.billedCount}, 0)`,
    })
    .where(existing(id))
    .returning({ customerId: organizations.stripeCustomerId })
  if (!row?.customerId) throw new AppError('unauthenticated', texts.unknownKey)
  return row.customerId
}

/** What makes Stripe be asked anew at once, with a full set of attempts; an answer under way does not count any more. */
const askAnew = { billedCount: null, billingAttempts: 0, nextBillingAt: sql`now()` }

/**
 * Takes an event in, once, and makes its customer's organization due in the same transaction. `isNew` is false for one
 * that was taken in before; `organizationId` is null for a customer who is not ours.
 */
export function takeEvent(db: Db, event: { id: string; customerId: string | null }) {
  return db.transaction(async (tx) => {
    const isNew = (await tx.insert(stripeEvents).values({ id: event.id }).onConflictDoNothing().returning()).length > 0
    if (!isNew || event.customerId === null) return { isNew, organizationId: null }
    const [row] = await tx
      .update(organizations)
      .set(askAnew)
      .where(eq(organizations.stripeCustomerId, event.customerId))
      .returning({ id: organizations.id })
    return { isNew, organizationId: row?.id ?? null }
  })
}

export const forgetOldEvents = (db: Db) =>
  db.delete(stripeEvents).where(sql`${stripeEvents.receivedAt} < now() - make_interval(days => ${eventsKeptDays})`)

/** Whether what Stripe charges is unknown, or another number than there are instances. */
const isOutOfSync = sql`${organizations.stripeCustomerId} IS NOT NULL AND (${organizations.billedCount} IS NULL
  OR (${organizations.stripeSubscriptionId} IS NOT NULL AND ${organizations.billedCount} <> ${organizations.instanceCount}))`

/**
 * Takes one organization that is out of sync with Stripe, the given one or the longest due, and counts the attempt:
 * whoever takes it has it alone until `nextBillingAt`, also across replicas. Null when none is due.
 */
export async function takeOutOfSync(db: Db, id?: string): Promise<Organization | null> {
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
      // To the millisecond, which is what comes back here: it is compared when the row is let go.
      nextBillingAt: sql`date_trunc('milliseconds', now()) + make_interval(secs => ${leaseSeconds})`,
    })
    .where(eq(organizations.id, sql`(${due})`))
    .returning()
  return row ?? null
}

const stillMine = (taken: Organization) =>
  and(eq(organizations.id, taken.id), eq(organizations.nextBillingAt, taken.nextBillingAt))

type Billed = Pick<Organization, 'stripeSubscriptionId' | 'billedCount'> &
  Partial<Pick<Organization, 'subscriptionTier' | 'instanceLimit'>>

/** Writes what Stripe said and lets the row go; nothing, when an event came meanwhile: then it is asked again. */
export function settleBilling(db: Db, taken: Organization, billed: Billed): Promise<boolean> {
  const isNews = billed.subscriptionTier !== undefined && billed.subscriptionTier !== taken.subscriptionTier
  return db.transaction(async (tx) => {
    const settled = await tx
      .update(organizations)
      .set({
        ...billed,
        billingAttempts: 0,
        nextBillingAt: sql`now() + make_interval(secs => ${pauseSeconds})`,
        ...(isNews && { updatedAt: sql`now()` }),
      })
      .where(stillMine(taken))
      .returning({ id: organizations.id })
    if (settled.length > 0 && isNews)
      await recordEvent(tx, {
        organizationId: taken.id,
        type: 'organization.tier_changed',
        reason: billed.subscriptionTier,
      })
    return settled.length > 0
  })
}

export async function postponeBilling(db: Db, taken: Organization, seconds: number): Promise<void> {
  await db
    .update(organizations)
    .set({ nextBillingAt: sql`now() + make_interval(secs => ${seconds})` })
    .where(stillMine(taken))
}
