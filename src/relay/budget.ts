import type { BudgetFault, BudgetPeriodName, BudgetScope, BudgetUnit } from '#database/budget-schema.ts'

/** A hard budget, as the grant of a token names it. */
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
