import { sql } from 'drizzle-orm'
import { bigint, index, integer, jsonb, numeric, pgTable, primaryKey, text, unique, uuid } from 'drizzle-orm/pg-core'
import { instant } from './schema.ts'

export const budgetScopes = ['organization', 'instance', 'key'] as const
export type BudgetScope = (typeof budgetScopes)[number]

export const budgetUnits = ['tokens', 'usd'] as const
export type BudgetUnit = (typeof budgetUnits)[number]

export const budgetPeriodNames = ['hour', 'day', 'month'] as const
export type BudgetPeriodName = (typeof budgetPeriodNames)[number]

/** What a budget does when it is used up: calls are refused, or only events say so. */
export const budgetModes = ['hard', 'warn'] as const
export type BudgetMode = (typeof budgetModes)[number]

/** What becomes of calls while a hard budget cannot be checked. */
export const budgetFaults = ['refuse', 'allow'] as const
export type BudgetFault = (typeof budgetFaults)[number]

/** Amounts in US dollars are counted in billionths. */
export const unitsPerUsd = 1_000_000_000
/** A lease that was not renewed for so long is that of a relay which has ended: it reserves nothing. */
export const leaseSeconds = 20

/**
 * What models may use in each period. The triggers and functions of the migration count what calls have used, and lease
 * what is left to relays.
 */
export const budgets = pgTable(
  'budgets',
  {
    id: uuid().primaryKey(),
    organizationId: uuid().notNull(),
    scope: text({ enum: budgetScopes }).notNull(),
    /** The organization, the instance or the key that it is of. */
    ownerId: uuid().notNull(),
    name: text().notNull(),
    /** The labels of the instances that it is for; empty for all. */
    selector: jsonb().$type<Record<string, string>>().notNull().default({}),
    unit: text({ enum: budgetUnits }).notNull(),
    /** In tokens, or in billionths of a US dollar. */
    limitUnits: bigint({ mode: 'number' }).notNull(),
    period: text({ enum: budgetPeriodNames }).notNull(),
    timeZone: text().notNull(),
    mode: text({ enum: budgetModes }).notNull(),
    /** US dollars for a million tokens of a model without a known price; null refuses such models. */
    unpricedPrice: numeric({ mode: 'number' }),
    onFault: text({ enum: budgetFaults }).notNull(),
    /** The place in the list of its owner. */
    position: integer().notNull(),
    /** Raised by each change: what relays have leased before counts no more. */
    revision: integer().notNull().default(1),
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
    beginsAt: instant().notNull(),
    endsAt: instant().notNull(),
    used: bigint({ mode: 'number' }).notNull().default(0),
    /** The greatest of 50, 80 and 100 percent that an event was written for. */
    notedPercent: integer().notNull().default(0),
  },
  (table) => [
    primaryKey({ columns: [table.budgetId, table.beginsAt] }),
    index('budget_periods_ended').on(table.endsAt),
  ],
)

/**
 * What each relay may still let its calls use. The migration makes the table UNLOGGED: after a crash of PostgreSQL it
 * is empty until the relays renew their leases.
 */
export const budgetLeases = pgTable(
  'budget_leases',
  {
    budgetId: uuid().notNull(),
    processId: uuid().notNull(),
    beginsAt: instant().notNull(),
    units: bigint({ mode: 'number' }).notNull(),
    renewedAt: instant().notNull().default(sql`now()`),
  },
  (table) => [primaryKey({ columns: [table.budgetId, table.processId] })],
)

/** The key that the last turn of a session came with, in organizations in which a key has a budget. */
export const sessionKeys = pgTable(
  'session_keys',
  {
    organizationId: uuid().notNull(),
    instanceId: uuid().notNull(),
    /** The gateway's key of the session. */
    session: text().notNull(),
    keyId: uuid().notNull(),
    notedAt: instant().notNull().defaultNow(),
  },
  (table) => [
    primaryKey({ columns: [table.instanceId, table.session] }),
    index('session_keys_noted').on(table.notedAt),
  ],
)
