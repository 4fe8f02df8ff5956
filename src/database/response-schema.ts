import { sql } from 'drizzle-orm'
import { index, integer, pgTable, primaryKey, text, uuid } from 'drizzle-orm/pg-core'
import { instant } from './schema.ts'

export const responseStatuses = ['in_progress', 'completed', 'incomplete', 'failed', 'cancelled'] as const
export type ResponseStatus = (typeof responseStatuses)[number]

/**
 * The responses of agents, which clients read later and continue from. A row is written when a turn begins and when it
 * ends. A row in progress whose process is dead counts as failed, unless it has a request: then another process takes
 * it over.
 */
export const responses = pgTable(
  'responses',
  {
    /** Clients see it as `resp_` and this id without its dashes. */
    id: uuid().primaryKey(),
    organizationId: uuid().notNull(),
    instanceId: uuid().notNull(),
    /** The gateway's key of the session. A session id of the API may have characters that PostgreSQL refuses. */
    sessionKey: text().notNull(),
    status: text({ enum: responseStatuses }).notNull(),
    /** The ids of the items in its output, of the calls among them, and of the calls that its input answers. */
    itemIds: text().array().notNull().default([]),
    callIds: text().array().notNull().default([]),
    answeredCallIds: text().array().notNull().default([]),
    /** The object and the input items, sealed. Null if they were not stored, too large, or deleted. */
    sealedObject: text(),
    sealedInput: text(),
    /** The request of a background turn, sealed, until the turn has ended. */
    sealedRequest: text(),
    /** When a background turn was first sent to its gateway. */
    sentAt: instant(),
    /** The process that runs the turn. A row in progress without one is lost, or waits for one. */
    processId: uuid(),
    createdAt: instant().notNull().defaultNow(),
  },
  (table) => [
    index('responses_session').on(table.instanceId, table.sessionKey, table.createdAt, table.id),
    index('responses_instance').on(table.instanceId, table.createdAt, table.id),
    index('responses_in_progress').on(table.id).where(sql`status = 'in_progress'`),
    index('responses_background').on(table.id).where(sql`sealed_request IS NOT NULL`),
  ],
)

/** The events of background turns, for their streams, in batches. They are deleted ten minutes after the last one. */
export const responseEvents = pgTable(
  'response_events',
  {
    responseId: uuid()
      .notNull()
      .references(() => responses.id, { onDelete: 'cascade' }),
    /** The number of the first event of the batch. */
    sequence: integer().notNull(),
    /** The events, as an array of JSON. */
    sealedEvents: text().notNull(),
    createdAt: instant().notNull().defaultNow(),
  },
  (table) => [primaryKey({ columns: [table.responseId, table.sequence] })],
)

/**
 * Sessions of a gateway that serve one call and are deleted after it. A row is written before its session is created,
 * and deleted after it.
 */
export const ephemeralSessions = pgTable(
  'passing_sessions',
  {
    sessionKey: text().primaryKey(),
    organizationId: uuid().notNull(),
    instanceId: uuid().notNull(),
    /** When the session may be deleted: after its turn, or after the maximum duration of a turn. */
    dueAt: instant().notNull(),
  },
  (table) => [index('passing_sessions_due').on(table.dueAt)],
)

/**
 * The turns of a session, including waiting ones, in the order of arrival. Each turn is the id of its process and a
 * number. A turn counts only while its process is alive. The migration makes the table UNLOGGED: a write of every turn
 * must not wait for the disk, and after a crash of PostgreSQL its rows are invalid.
 */
export const turnLines = pgTable(
  'turn_lines',
  {
    instanceId: uuid().notNull(),
    sessionKey: text().notNull(),
    turns: text().array().notNull(),
    /** When a turn last entered the line. A turn takes at most 15 minutes. */
    enteredAt: instant().notNull().defaultNow(),
  },
  (table) => [primaryKey({ columns: [table.instanceId, table.sessionKey] })],
)
