import { instanceLimits } from '#api/organization/tiers.ts'
import type { Db } from '#database/client.ts'
import type { Organization } from '#database/schema.ts'
import { runAs } from '#history/actor.ts'
import type { Logger } from '#platform/log.ts'
import { forgetOldEvents, postponeBilling, settleBilling, takeOutOfSync } from './store.ts'
import type { Billing, PaidTier } from './stripe.ts'

export interface SyncDeps {
  db: Db
  billing: Billing
  log: Pick<Logger, 'info' | 'warn' | 'error'>
}

const firstRetrySeconds = 10
const maxRetrySeconds = 600
/** From this attempt on the log line is an error: somebody has to look. */
const alarmingAttempts = 10

/**
 * Makes one organization and Stripe agree: its tier is what it pays for, and the quantity it pays for is the number of
 * its instances. Takes the given one if it is due, else the longest due; true when one was due and agrees now. A failure
 * is logged and repeated with growing pauses, for ever: money is at stake. A crash half-way is repeated after a minute.
 */
export async function syncSubscription(deps: SyncDeps, organizationId?: string): Promise<boolean> {
  const { db, log } = deps
  const taken = await takeOutOfSync(db, organizationId)
  if (!taken) return false
  const about = { organizationId: taken.id, attempts: taken.billingAttempts }
  try {
    await runAs({ actor: { type: 'stripe' } }, () =>
      taken.deletedAt ? endSubscription(deps, taken) : agree(deps, taken),
    )
    return true
  } catch (error) {
    const level = taken.billingAttempts >= alarmingAttempts ? 'error' : 'warn'
    log[level]({ err: error, ...about }, 'the subscription could not be brought in line with Stripe; it is tried again')
    const seconds = Math.min(firstRetrySeconds * 2 ** (taken.billingAttempts - 1), maxRetrySeconds)
    await postponeBilling(db, taken, seconds)
    return false
  }
}

/** All that are due, one after another. Ends at a failure: Stripe may be away, and the rest are due in the next round. */
export async function syncSubscriptions(deps: SyncDeps, signal: AbortSignal): Promise<void> {
  await forgetOldEvents(deps.db)
  while (!signal.aborted && (await syncSubscription(deps)));
}

async function agree({ db, billing, log }: SyncDeps, taken: Organization): Promise<void> {
  const { id: organizationId, stripeCustomerId, instanceCount } = taken
  const [found, second] = await billing.findSubscriptions(stripeCustomerId ?? '')
  if (second?.tier) log.error({ organizationId, subscriptionId: second.id }, 'an organization pays twice')
  if (found && found.quantity !== instanceCount) {
    // A key of this attempt alone: Stripe answers a repeated one with its first answer, be it a failure.
    await billing.setQuantity(
      found.itemId,
      instanceCount,
      `quantity-${organizationId}-${taken.nextBillingAt.getTime()}`,
    )
    log.info({ organizationId, from: found.quantity, to: instanceCount }, 'Stripe knows the number of instances')
  }
  const tier = tierFor(taken, found?.tier ?? null)
  const settled = await settleBilling(db, taken, {
    stripeSubscriptionId: found?.id ?? null,
    billedCount: found ? instanceCount : 0,
    ...(tier && { subscriptionTier: tier, instanceLimit: instanceLimits[tier] }),
  })
  if (settled && tier) log.info({ organizationId, from: taken.subscriptionTier, to: tier }, 'the tier has changed')
}

/**
 * The tier that an organization changes to; null when it keeps its own. A lower limit stops nothing: creates are refused
 * until enough was deleted. What the operator gave stays: `whale` always, another tier while nothing was ever paid for.
 */
function tierFor({ subscriptionTier, stripeSubscriptionId }: Organization, paid: PaidTier | null) {
  const tier = paid ?? 'shrimp'
  if (tier === subscriptionTier || subscriptionTier === 'whale') return null
  return paid || stripeSubscriptionId ? tier : null
}

/** Of a deleted organization: ended one by one, until Stripe knows of none. */
async function endSubscription({ db, billing, log }: SyncDeps, taken: Organization): Promise<void> {
  const [found, second] = await billing.findSubscriptions(taken.stripeCustomerId ?? '')
  if (found) {
    await billing.cancelSubscription(found.id)
    log.info({ organizationId: taken.id, subscriptionId: found.id }, 'the subscription of a deleted organization ended')
  }
  await settleBilling(db, taken, { stripeSubscriptionId: null, billedCount: second ? null : 0 })
}
