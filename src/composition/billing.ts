import { type Billing, createBilling } from '#api/subscription/stripe.ts'
import type { Config } from '#settings/config.ts'

/** Opens billing; null without the settings of Stripe. Both are set or none. */
export async function openBilling(config: Config, publicUrl: () => string): Promise<Billing | null> {
  const { STRIPE_SECRET_KEY, STRIPE_WEBHOOK_SECRET } = config
  if (!STRIPE_SECRET_KEY || !STRIPE_WEBHOOK_SECRET) return null
  return createBilling({
    secretKey: STRIPE_SECRET_KEY,
    webhookSecret: STRIPE_WEBHOOK_SECRET,
    returnUrl: publicUrl,
  })
}
