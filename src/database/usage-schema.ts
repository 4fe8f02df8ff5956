import { index, integer, numeric, pgTable, primaryKey, text, uuid } from 'drizzle-orm/pg-core'
import { instant, modelProviders } from './schema.ts'

/** The purpose of a model call, as far as the gateway reports it. */
export const callCauses = ['api', 'channel', 'cron', 'subagent'] as const
export type CallCause = (typeof callCauses)[number]

/**
 * How a call ended: with the whole answer; with a part of it or none because the agent or the vendor left; or unknown
 * because its relay was killed.
 */
export const callOutcomes = ['answered', 'cut', 'lost'] as const
export type CallOutcome = (typeof callOutcomes)[number]

const who = {
  id: uuid().primaryKey(),
  organizationId: uuid().notNull(),
  instanceId: uuid().notNull(),
  /** The gateway's key of the session; null if the gateway did not report it. */
  session: text(),
  cause: text({ enum: callCauses }),
  provider: text({ enum: modelProviders }).notNull(),
  /** The model that answered, else the requested one; null if neither is known. */
  model: text(),
  beganAt: instant().notNull(),
}

/**
 * The calls of models that a vendor has accepted, each written once when it has ended. Tokens are those that the vendor
 * had reported by the end of the call; null if none.
 */
export const modelCalls = pgTable(
  'model_calls',
  {
    ...who,
    /** The end user of its session when the call ended. */
    endUser: text(),
    outcome: text({ enum: callOutcomes }).notNull(),
    /** All input, including the cache's. */
    inputTokens: integer(),
    cacheReadTokens: integer(),
    cacheWriteTokens: integer(),
    /** All output, including reasoning. */
    outputTokens: integer(),
    reasoningTokens: integer(),
    /** An estimate in US dollars; null if the tokens or the price are unknown. */
    cost: numeric({ precision: 18, scale: 9, mode: 'number' }),
    /**
     * Additional amount that budgets count for a call with a cut answer or without reported usage, estimated from its
     * bytes.
     */
    estimatedTokens: integer(),
    /** Its cost; null if the price is unknown. */
    estimatedCost: numeric({ precision: 18, scale: 9, mode: 'number' }),
  },
  (table) => [
    index('model_calls_organization').on(table.organizationId, table.beganAt),
    index('model_calls_instance').on(table.instanceId, table.beganAt),
    index('model_calls_began').on(table.beganAt),
  ],
)

/**
 * The open calls of a relay, so that those of a killed one are found. The migration makes the table UNLOGGED: a row is
 * written and deleted without waiting for the disk. After a crash of PostgreSQL it is empty, and the relays still write
 * their open calls when these end.
 */
export const openModelCalls = pgTable('open_model_calls', {
  ...who,
  /** The process of the relay, in `processes`. */
  processId: uuid().notNull(),
})

/** The end user of the last turn of a session that named one: gateways do not pass it on with their calls. */
export const sessionEndUsers = pgTable(
  'session_end_users',
  {
    organizationId: uuid().notNull(),
    instanceId: uuid().notNull(),
    /** The gateway's key of the session. */
    session: text().notNull(),
    endUser: text().notNull(),
    notedAt: instant().notNull().defaultNow(),
  },
  (table) => [
    primaryKey({ columns: [table.instanceId, table.session] }),
    index('session_end_users_noted').on(table.notedAt),
  ],
)
