import { bigint, pgTable, primaryKey, text, uuid } from 'drizzle-orm/pg-core'

/** What counts as stored by an organization: the configuration of instances, responses, answers to repeats, events,
 * calls of models. */
export const storedKinds = ['instances', 'responses', 'idempotency_answers', 'events', 'calls'] as const
export type StoredKind = (typeof storedKinds)[number]

/** The bytes that an organization stores, one row for each kind. `addUpStoredBytes` keeps them up to date. */
export const storedBytes = pgTable(
  'stored_bytes',
  {
    organizationId: uuid().notNull(),
    kind: text({ enum: storedKinds }).notNull(),
    bytes: bigint({ mode: 'number' }).notNull(),
  },
  (table) => [primaryKey({ columns: [table.organizationId, table.kind] })],
)

/**
 * The changes of these bytes that are not added up yet. The trigger `count_stored_bytes` of the migrations writes a row
 * in the statement of the change. It raises no counter there: statements that change one would wait for each other.
 */
export const storedByteChanges = pgTable('stored_byte_changes', {
  organizationId: uuid().notNull(),
  kind: text({ enum: storedKinds }).notNull(),
  bytes: bigint({ mode: 'number' }).notNull(),
})
