import { sql } from 'drizzle-orm'
import {
  bigint,
  customType,
  index,
  integer,
  jsonb,
  pgTable,
  primaryKey,
  text,
  timestamp,
  uniqueIndex,
  uuid,
} from 'drizzle-orm/pg-core'

export const modelProviders = ['anthropic', 'openai', 'gemini'] as const
export type ModelProvider = (typeof modelProviders)[number]

export const desiredStates = ['running', 'stopped', 'terminated'] as const
export type DesiredState = (typeof desiredStates)[number]

export const tiers = ['shrimp', 'crab', 'lobster', 'whale'] as const
export type Tier = (typeof tiers)[number]

const bytea = customType<{ data: Buffer }>({ dataType: () => 'bytea' })
const instant = () => timestamp({ withTimezone: true, mode: 'date' })

/** Facts about this installation that outlive every process: one row a name. */
export const installation = pgTable('installation', {
  name: text().primaryKey(),
  value: text().notNull(),
})

export const organizations = pgTable('organizations', {
  id: uuid().primaryKey(),
  name: text().notNull(),
  subscriptionTier: text({ enum: tiers }).notNull(),
  /** Most instances that may exist at once; null is no limit. */
  instanceLimit: integer(),
  /** Instances not terminated. Raised and lowered by the statements that create and terminate, never counted. */
  instanceCount: integer().notNull().default(0),
  createdAt: instant().notNull().defaultNow(),
  updatedAt: instant().notNull().defaultNow(),
  deletedAt: instant(),
})

/** Model provider keys, sealed; one a provider and organization. */
export const providerKeys = pgTable(
  'provider_keys',
  {
    organizationId: uuid()
      .notNull()
      .references(() => organizations.id),
    provider: text({ enum: modelProviders }).notNull(),
    sealedKey: text().notNull(),
    updatedAt: instant().notNull().defaultNow(),
  },
  (table) => [primaryKey({ columns: [table.organizationId, table.provider] })],
)

/** API keys of which only the SHA-256 is known here. */
export const apiKeys = pgTable(
  'api_keys',
  {
    id: uuid().primaryKey(),
    organizationId: uuid()
      .notNull()
      .references(() => organizations.id),
    keyHash: bytea().notNull(),
    /** The first characters, for people to tell keys apart. */
    keyPrefix: text().notNull(),
    createdAt: instant().notNull().defaultNow(),
  },
  (table) => [uniqueIndex('api_keys_key_hash').on(table.keyHash)],
)

/**
 * One OpenClaw agent each. There is no status column: `instances/status.ts` computes it. The row is due while
 * `observedGeneration` is behind `generation`, and settled when they are equal.
 */
export const instances = pgTable(
  'instances',
  {
    id: uuid().primaryKey(),
    organizationId: uuid()
      .notNull()
      .references(() => organizations.id),
    name: text().notNull(),
    modelProvider: text({ enum: modelProviders }).notNull(),
    /** Which driver this row's sandbox lives on; workers with another one leave it alone. */
    sandboxDriver: text().notNull(),
    openclawVersion: text().notNull(),
    /** The caller's configuration overrides as JSON, sealed because they may hold tokens. */
    sealedConfig: text(),

    // Intent: written by the API.
    desiredState: text({ enum: desiredStates }).notNull(),
    generation: integer().notNull().default(1),

    // Observation: written under the lease.
    observedGeneration: integer().notNull().default(0),
    /** What is being done right now; null when settled. */
    step: text(),
    /** Takes by a worker since the last new intent or lasting success. */
    attempts: integer().notNull().default(0),
    nextAttemptAt: instant().notNull().defaultNow(),
    /** The fencing token: raised at each take, carried by every write of the holder. */
    leaseToken: bigint({ mode: 'number' }).notNull().default(0),
    leaseUntil: instant().notNull().defaultNow(),
    /** The platform's name for the sandbox, for display only. */
    sandboxId: text(),
    /** Where the gateway listens: `sandbox/driver.ts` Endpoint. Private. */
    endpoint: jsonb(),
    /** The gateway's token, sealed. */
    sealedToken: text().notNull(),
    /** Set when the gateway was last seen to become healthy; null while it is not known to run. */
    readyAt: instant(),
    errorMessage: text(),

    createdAt: instant().notNull().defaultNow(),
    updatedAt: instant().notNull().defaultNow(),
    terminatedAt: instant(),
  },
  (table) => [
    index('instances_organization').on(table.organizationId, table.createdAt, table.id),
    index('instances_due').on(table.nextAttemptAt).where(sql`observed_generation < generation`),
    index('instances_settled_running').on(table.id).where(sql`desired_state = 'running' AND ready_at IS NOT NULL`),
  ],
)

export type Organization = typeof organizations.$inferSelect
export type Instance = typeof instances.$inferSelect
export type NewInstance = typeof instances.$inferInsert
