import { index, integer, numeric, pgTable, primaryKey, text, uuid } from 'drizzle-orm/pg-core'
import { instant, modelProviders } from './schema.ts'

/** What a model was called for, as far as the gateway says. */
export const callCauses = ['api', 'channel', 'cron', 'subagent'] as const
export type CallCause = (typeof callCauses)[number]

/**
 * How a call ended: with the whole answer, with a part of it or none because the agent or the vendor left, or unknown
 * because its relay ended without a word.
 */
export const callOutcomes = ['answered', 'cut', 'lost'] as const
export type CallOutcome = (typeof callOutcomes)[number]

const who = {
  id: uuid().primaryKey(),
  organizationId: uuid().notNull(),
  instanceId: uuid().notNull(),
  /** The gateway's key of the session; null when the gateway did not tell. */
  session: text(),
  cause: text({ enum: callCauses }),
  provider: text({ enum: modelProviders }).notNull(),
  /** The model that answered, else the one that was asked; null when neither is known. */
  model: text(),
  beganAt: instant().notNull(),
}

/**
 * The calls of models that a vendor has taken, each written once when it has ended. Tokens are null when the vendor has
 * not told them: they are those that it had told by the end of the call.
 */
export const modelCalls = pgTable(
  'model_calls',
  {
    ...who,
    /** The end user of its session when the call ended. */
    endUser: text(),
    outcome: text({ enum: callOutcomes }).notNull(),
    /** All input, that of the cache included. */
    inputTokens: integer(),
    cacheReadTokens: integer(),
    cacheWriteTokens: integer(),
    /** All output, that of reasoning included. */
    outputTokens: integer(),
    reasoningTokens: integer(),
    /** An estimate in US dollars; null when the tokens or the price are unknown. */
    cost: numeric({ precision: 18, scale: 9, mode: 'number' }),
    /** What budgets count beside it for a call whose answer was cut or tells no usage, by its bytes. */
    estimatedTokens: integer(),
    /** Its cost; null when the price is unknown. */
    estimatedCost: numeric({ precision: 18, scale: 9, mode: 'number' }),
  },
  (table) => [
    index('model_calls_organization').on(table.organizationId, table.beganAt),
    index('model_calls_instance').on(table.instanceId, table.beganAt),
    index('model_calls_began').on(table.beganAt),
  ],
)

/**
 * The calls that a relay has open, so that those of a killed one are found. The migration makes the table UNLOGGED: a
 * row is written and deleted without waiting for the disk. After a crash of PostgreSQL it is empty, and the relays
 * still write the calls that they have open when these end.
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
