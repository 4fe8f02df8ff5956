import { bigint, index, integer, numeric, pgTable, primaryKey, text, unique, uuid } from 'drizzle-orm/pg-core'
import { instant } from './schema.ts'

/**
 * The calls that a budget counts: all calls of its owner together, those of each end user separately, or the unattended
 * calls of each instance separately. An unattended call has no person behind it: cron, a heartbeat, a subagent of
 * either.
 */
export const budgetScopes = ['total', 'end_user', 'unattended'] as const
export type BudgetScope = (typeof budgetScopes)[number]

export const budgetUnits = ['tokens', 'usd', 'calls'] as const
export type BudgetUnit = (typeof budgetUnits)[number]

export const budgetPeriodNames = ['hour', 'day', 'month'] as const
export type BudgetPeriodName = (typeof budgetPeriodNames)[number]

/** The effect of an exhausted budget: calls are refused, or only events report it. */
export const budgetModes = ['hard', 'warn'] as const
export type BudgetMode = (typeof budgetModes)[number]

/** Amounts in US dollars are counted in billionths. */
export const unitsPerUsd = 1_000_000_000

/**
 * The allowed use of models in each period. A trigger of the migration counts the use of calls. The migration also
 * inserts the default budget of unattended calls, with the zero UUID as organization and owner.
 */
export const budgets = pgTable(
  'budgets',
  {
    id: uuid().primaryKey(),
    organizationId: uuid().notNull(),
    /** The owner: the organization or the instance. */
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
    /** The position in the list of its owner. */
    position: integer().notNull(),
    createdAt: instant().notNull().defaultNow(),
  },
  (table) => [
    unique('budgets_owner_name').on(table.ownerId, table.name),
    index('budgets_organization').on(table.organizationId),
  ],
)

/** The use of the calls that began in a period, counted by the trigger on `model_calls`. */
export const budgetPeriods = pgTable(
  'budget_periods',
  {
    budgetId: uuid().notNull(),
    /** The separately counted end user or instance; empty for the scope `total`. */
    member: text().notNull().default(''),
    beginsAt: instant().notNull(),
    endsAt: instant().notNull(),
    used: bigint({ mode: 'number' }).notNull().default(0),
    /** The highest threshold of 50, 80 and 100 percent with an event. */
    notedPercent: integer().notNull().default(0),
  },
  (table) => [
    primaryKey({ columns: [table.budgetId, table.member, table.beginsAt] }),
    index('budget_periods_ended').on(table.endsAt),
  ],
)

/** A hard budget with its current use, as returned by the SQL function `hard_budgets`. */
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
  /** The end of its period, ISO 8601; null without use in it. */
  endsAt: string | null
}
