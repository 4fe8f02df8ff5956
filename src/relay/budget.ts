import type { BudgetFault, BudgetPeriodName, BudgetScope, BudgetUnit } from '#database/budget-schema.ts'

/** A hard budget that a call must be allowed by. */
export interface GrantedBudget {
  id: string
  revision: number
  name: string
  scope: BudgetScope
  unit: BudgetUnit
  period: BudgetPeriodName
  timeZone: string
  unpricedPrice: number | null
  onFault: BudgetFault
  isOfLabels: boolean
}

/** The SQL of a `GrantedBudget`, as JSON, of a row `b` of `budgets`. */
export const grantedBudget = `json_build_object(
  'id', b.id, 'revision', b.revision, 'name', b.name, 'scope', b.scope, 'unit', b.unit, 'period', b.period,
  'timeZone', b.time_zone, 'unpricedPrice', b.unpriced_price, 'onFault', b.on_fault, 'isOfLabels', b.selector <> '{}')`
