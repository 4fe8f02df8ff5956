import { type Billing, createBilling } from '#api/subscription/stripe.ts'
import type { Config } from '#settings/config.ts'

/** Opens billing; null without the settings of Stripe. Those are set all together or not at all. */
export async function openBilling(config: Config, publicUrl: () => string): Promise<Billing | null> {
  const { STRIPE_SECRET_KEY, STRIPE_WEBHOOK_SECRET, STRIPE_PRICE_CRAB, STRIPE_PRICE_LOBSTER } = config
  if (!STRIPE_SECRET_KEY || !STRIPE_WEBHOOK_SECRET || !STRIPE_PRICE_CRAB || !STRIPE_PRICE_LOBSTER) return null
  return createBilling({
    secretKey: STRIPE_SECRET_KEY,
    webhookSecret: STRIPE_WEBHOOK_SECRET,
    prices: { crab: STRIPE_PRICE_CRAB, lobster: STRIPE_PRICE_LOBSTER },
    returnUrl: publicUrl,
  })
}
