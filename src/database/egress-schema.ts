import { bigint, index, integer, pgTable, primaryKey, text, uuid } from 'drizzle-orm/pg-core'
import { instant } from './schema.ts'

/** The result of a connection. `reported`: it was permitted, and an allow-list would have blocked it. */
export const egressVerdicts = ['allowed', 'reported', 'blocked'] as const
export type EgressVerdict = (typeof egressVerdicts)[number]

/** The last hosts that the agent of an instance has requested. */
export const egressHosts = pgTable(
  'egress_hosts',
  {
    instanceId: uuid().notNull(),
    host: text().notNull(),
    port: integer().notNull(),
    organizationId: uuid().notNull(),
    /** The result of the last connection. */
    verdict: text({ enum: egressVerdicts }).notNull(),
    /** The reason why the last connection was blocked; null if it was not. */
    reason: text(),
    connections: bigint({ mode: 'number' }).notNull(),
    sentBytes: bigint({ mode: 'number' }).notNull().default(0),
    receivedBytes: bigint({ mode: 'number' }).notNull().default(0),
    firstSeenAt: instant().notNull().defaultNow(),
    lastSeenAt: instant().notNull().defaultNow(),
  },
  (table) => [
    primaryKey({ columns: [table.instanceId, table.host, table.port] }),
    index('egress_hosts_last_seen').on(table.lastSeenAt),
    index('egress_hosts_organization').on(table.organizationId),
  ],
)
