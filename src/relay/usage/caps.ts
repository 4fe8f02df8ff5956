import { unitsPerUsd } from '#database/budget-schema.ts'
import type { ModelProvider } from '#database/schema.ts'
import { budgetTexts } from '#platform/budget-texts.ts'
import { budgetRefusals } from '#platform/metrics.ts'
import type { GrantedBudget } from '#relay/budget.ts'
import { CallRefused } from '#relay/call.ts'
import { estimateCost } from './cost.ts'

/** What a call uses, or may use. */
export interface CallAmount {
  tokens: number
  /** US dollars; null without a known price. */
  cost: number | null
}

/** An amount in the unit of a budget. A model without a price has that of the budget. */
export const unitsOf = ({ unit, unpricedPrice }: GrantedBudget, { tokens, cost }: CallAmount): number =>
  unit === 'tokens' ? tokens : Math.ceil((cost ?? (tokens * (unpricedPrice ?? 0)) / 1e6) * unitsPerUsd)

/** Bytes of JSON for a token of a request. */
const bytesPerToken = 4
/** What a call reserves of output at most, and when its request names no limit. */
const reservedOutputTokens = 8192

/** What a call may use: its request by its bytes, and the output that the request allows, up to some thousand tokens. */
export function capOf(
  provider: ModelProvider,
  { model, maxOutputTokens }: { model: string | null; maxOutputTokens: number | null },
  requestBytes: number,
): CallAmount {
  const input = Math.ceil(requestBytes / bytesPerToken)
  const output = Math.ceil(Math.min(maxOutputTokens ?? reservedOutputTokens, reservedOutputTokens))
  return { tokens: input + output, cost: estimateCost(provider, model, input, output) }
}

/** Throws CallRefused when a budget in US dollars refuses models without a price, and this is one. */
export function requirePrice(budgets: readonly GrantedBudget[], { cost }: CallAmount, model: string | null): void {
  const refusing = budgets.find(({ unit, unpricedPrice }) => unit === 'usd' && unpricedPrice === null)
  if (cost !== null || !refusing) return
  budgetRefusals.inc({ reason: 'unpriced' })
  throw new CallRefused(400, budgetTexts.unpriced(refusing, model))
}
