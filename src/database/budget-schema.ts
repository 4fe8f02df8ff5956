import { bigint, index, integer, numeric, pgTable, primaryKey, text, unique, uuid } from 'drizzle-orm/pg-core'
import { instant } from './schema.ts'

/**
 * The calls that a budget counts: all calls of its owner together; those of each end user apart; the unattended calls of
 * each instance apart. An unattended call has no person behind it: cron, a heartbeat, a subagent of either.
 */
export const budgetScopes = ['total', 'end_user', 'unattended'] as const
export type BudgetScope = (typeof budgetScopes)[number]

export const budgetUnits = ['tokens', 'usd', 'calls'] as const
export type BudgetUnit = (typeof budgetUnits)[number]

export const budgetPeriodNames = ['hour', 'day', 'month'] as const
export type BudgetPeriodName = (typeof budgetPeriodNames)[number]

/** The effect of a budget that is used up: calls are refused, or only events report it. */
export const budgetModes = ['hard', 'warn'] as const
export type BudgetMode = (typeof budgetModes)[number]

/** Amounts in US dollars are counted in billionths. */
export const unitsPerUsd = 1_000_000_000

/**
 * The use of models that is allowed in each period. A trigger of the migration counts what calls have used. The
 * migration also inserts the default budget of unattended calls, whose organization and owner are the zero UUID.
 */
export const budgets = pgTable(
  'budgets',
  {
    id: uuid().primaryKey(),
    organizationId: uuid().notNull(),
    /** The organization or the instance whose calls it counts. */
    ownerId: uuid().notNull(),
    scope: text({ enum: budgetScopes }).notNull(),
    name: text().notNull(),
    unit: text({ enum: budgetUnits }).notNull(),
    /** In tokens, calls, or billionths of a US dollar. */
    limitUnits: bigint({ mode: 'number' }).notNull(),
    period: text({ enum: budgetPeriodNames }).notNull(),
    timeZone: text().notNull(),
    mode: text({ enum: budgetModes }).notNull(),
    /** US dollars for a million tokens of a model without a known price; null refuses such models. */
    unpricedPrice: numeric({ mode: 'number' }),
    /** The place in the list of its owner. */
    position: integer().notNull(),
    createdAt: instant().notNull().defaultNow(),
  },
  (table) => [
    unique('budgets_owner_name').on(table.ownerId, table.name),
    index('budgets_organization').on(table.organizationId),
  ],
)

/** What the calls that began in a period have used, as the trigger on `model_calls` counts it. */
export const budgetPeriods = pgTable(
  'budget_periods',
  {
    budgetId: uuid().notNull(),
    /** The end user or the instance that is counted apart; empty for the scope `total`. */
    member: text().notNull().default(''),
    beginsAt: instant().notNull(),
    endsAt: instant().notNull(),
    used: bigint({ mode: 'number' }).notNull().default(0),
    /** The greatest of 50, 80 and 100 percent that an event was written for. */
    notedPercent: integer().notNull().default(0),
  },
  (table) => [
    primaryKey({ columns: [table.budgetId, table.member, table.beginsAt] }),
    index('budget_periods_ended').on(table.endsAt),
  ],
)

/** A hard budget with what is used of it, as the SQL function `hard_budgets` returns it. */
export interface HardBudget {
  name: string
  owner: 'organization' | 'instance'
  scope: BudgetScope
  unit: BudgetUnit
  limitUnits: number
  period: BudgetPeriodName
  timeZone: string
  unpricedPrice: number | null
  used: number
  /** When its period ends, ISO 8601; null while nothing is used in it. */
  endsAt: string | null
}
