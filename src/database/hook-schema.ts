import { boolean, index, jsonb, pgTable, text, uuid } from 'drizzle-orm/pg-core'
import { instances, instant } from './schema.ts'

/** The service whose way of signing a hook verifies. */
export const hookKinds = ['standard', 'github', 'slack'] as const
export type HookKind = (typeof hookKinds)[number]

export const callOutcomes = ['started', 'ignored', 'failed'] as const

/** A call with a good signature, as the API shows it. */
export interface HookCall {
  /** ISO 8601. */
  at: string
  /** The id that its sender gives it: the same in all repetitions. */
  delivery_id: string
  outcome: (typeof callOutcomes)[number]
  response_id: string | null
  /** Why nothing began. */
  reason: string | null
}

/** Addresses at which other services begin turns of an agent. */
export const hooks = pgTable(
  'hooks',
  {
    id: uuid().primaryKey(),
    organizationId: uuid().notNull(),
    instanceId: uuid()
      .notNull()
      .references(() => instances.id),
    name: text().notNull(),
    kind: text({ enum: hookKinds }).notNull(),
    sealedSecret: text().notNull(),
    /** The template of the message. */
    sealedInput: text().notNull(),
    /** The template of the session id. */
    session: text().notNull(),
    model: text().notNull(),
    isPaused: boolean().notNull().default(false),
    /** The last calls, the newest first. */
    calls: jsonb().$type<HookCall[]>().notNull().default([]),
    createdAt: instant().notNull().defaultNow(),
  },
  (table) => [index('hooks_instance').on(table.instanceId, table.createdAt, table.id)],
)
