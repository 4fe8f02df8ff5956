import type { Db } from '#database/client.ts'
import type { Organization } from '#database/schema.ts'
import { runAs } from '#history/actor.ts'
import { instanceLimits } from '#instances/tiers.ts'
import type { Logger } from '#platform/log.ts'
import { claimOutOfSync, deleteOldEvents, postponeSync, settleSync } from './store.ts'
import type { Billing, PaidTier } from './stripe.ts'

export interface SyncDeps {
  db: Db
  billing: Billing
  log: Pick<Logger, 'info' | 'warn' | 'error'>
}

const firstRetrySeconds = 10
const maxRetrySeconds = 600
/** From this attempt on a failure is logged as an error, for the operator. */
const errorFromAttempt = 10

/**
 * Syncs one organization with Stripe, the given one or the longest due: sets its tier to the paid one, and Stripe's
 * quantity to the number of its instances. Returns whether one was due and succeeded. A failure is logged and retried
 * with growing pauses for ever, because money is at stake; after a crash half-way the sync is due again within a
 * minute.
 */
export async function syncSubscription(deps: SyncDeps, organizationId?: string): Promise<boolean> {
  const { db, log } = deps
  const claimed = await claimOutOfSync(db, organizationId)
  if (!claimed) return false
  const about = { organizationId: claimed.id, attempts: claimed.billingAttempts }
  try {
    await runAs({ actor: { type: 'stripe' } }, () =>
      claimed.deletedAt ? cancelSubscriptions(deps, claimed) : syncClaimed(deps, claimed),
    )
    return true
  } catch (error) {
    const level = claimed.billingAttempts >= errorFromAttempt ? 'error' : 'warn'
    log[level]({ err: error, ...about }, 'the sync of a subscription with Stripe failed and will be repeated')
    const seconds = Math.min(firstRetrySeconds * 2 ** (claimed.billingAttempts - 1), maxRetrySeconds)
    await postponeSync(db, claimed, seconds)
    return false
  }
}

/**
 * Syncs all organizations that are due, one after another, and deletes old events. Stops at a failure, because Stripe
 * may be unreachable; the next run continues.
 */
export async function syncSubscriptions(deps: SyncDeps, signal: AbortSignal): Promise<void> {
  await deleteOldEvents(deps.db)
  while (!signal.aborted && (await syncSubscription(deps)));
}

async function syncClaimed({ db, billing, log }: SyncDeps, claimed: Organization): Promise<void> {
  const { id: organizationId, stripeCustomerId, instanceCount } = claimed
  const [found, second] = await billing.findSubscriptions(stripeCustomerId ?? '')
  if (second?.tier)
    log.error({ organizationId, subscriptionId: second.id }, 'an organization has two paid subscriptions')
  if (found && found.quantity !== instanceCount) {
    // The key differs in each attempt, because Stripe answers a repeated key with its first answer, even a failure.
    await billing.setQuantity(
      found.itemId,
      instanceCount,
      `quantity-${organizationId}-${claimed.nextBillingAt.getTime()}`,
    )
    log.info({ organizationId, from: found.quantity, to: instanceCount }, 'the number of instances was sent to Stripe')
  }
  const tier = tierFor(claimed, found?.tier ?? null)
  const settled = await settleSync(db, claimed, {
    stripeSubscriptionId: found?.id ?? null,
    billedCount: found ? instanceCount : 0,
    ...(tier && { subscriptionTier: tier, instanceLimit: instanceLimits[tier] }),
  })
  if (settled && tier)
    log.info({ organizationId, from: claimed.subscriptionTier, to: tier }, 'the tier of an organization has changed')
}

/**
 * The tier that an organization changes to; null when its tier stays. A lower limit stops no instance: creates are
 * refused until enough are deleted. A tier that the operator set stays: `whale` always, any other until the first
 * subscription.
 */
function tierFor({ subscriptionTier, stripeSubscriptionId }: Organization, paid: PaidTier | null) {
  const tier = paid ?? 'shrimp'
  if (tier === subscriptionTier || subscriptionTier === 'whale') return null
  return paid || stripeSubscriptionId ? tier : null
}

/** Cancels the subscriptions of a deleted organization, one in each sync, until Stripe has none. */
async function cancelSubscriptions({ db, billing, log }: SyncDeps, claimed: Organization): Promise<void> {
  const [found, second] = await billing.findSubscriptions(claimed.stripeCustomerId ?? '')
  if (found) {
    await billing.cancelSubscription(found.id)
    log.info(
      { organizationId: claimed.id, subscriptionId: found.id },
      'the subscription of a deleted organization was cancelled',
    )
  }
  await settleSync(db, claimed, { stripeSubscriptionId: null, billedCount: second ? null : 0 })
}
