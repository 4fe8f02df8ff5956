import { sql } from 'drizzle-orm'
import {
  bigint,
  boolean,
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

export const permissions = ['read', 'interact', 'configure', 'files', 'channels'] as const
export type Permission = (typeof permissions)[number]

export const actorTypes = ['key', 'operator', 'stripe', 'worker'] as const
export type ActorType = (typeof actorTypes)[number]

export const tiers = ['shrimp', 'crab', 'lobster', 'whale'] as const
export type Tier = (typeof tiers)[number]

const bytea = customType<{ data: Buffer }>({ dataType: () => 'bytea' })
export const instant = () => timestamp({ withTimezone: true, mode: 'date' })

/** Who changed something, in which request and for what reason: what an event is written with. */
export interface ChangedBy {
  actor_type: ActorType
  actor_id?: string
  request_id?: string
  /** Left out for what the change itself tells, such as `instance.running`. */
  type?: string
  subject?: string
  reason?: string
}

/** Facts about this installation that outlive every process: one row a name. */
export const installation = pgTable('installation', {
  name: text().primaryKey(),
  value: text().notNull(),
})

export const organizations = pgTable(
  'organizations',
  {
    id: uuid().primaryKey(),
    name: text().notNull(),
    subscriptionTier: text({ enum: tiers }).notNull(),
    /** Most instances that may exist at once; null is no limit. */
    instanceLimit: integer(),
    /** Instances not terminated. Raised and lowered by the statements that create and terminate, never counted. */
    instanceCount: integer().notNull().default(0),
    /** Null without a billing relation; the subscription's also without a paid plan. */
    stripeCustomerId: text(),
    stripeSubscriptionId: text(),
    /** The quantity that Stripe charges: another one than `instanceCount` is to be told, null is to be asked. */
    billedCount: integer(),
    billingAttempts: integer().notNull().default(0),
    /** When Stripe may be asked next. Whoever asks sets it ahead: it is also the lease, and its token. */
    nextBillingAt: instant().notNull().defaultNow(),
    createdAt: instant().notNull().defaultNow(),
    updatedAt: instant().notNull().defaultNow(),
    /** Set by the operator: all its keys are refused until it is taken back. */
    disabledAt: instant(),
    deletedAt: instant(),
    /** When the last sandbox of a deleted organization was gone. */
    erasedAt: instant(),
  },
  (table) => [
    uniqueIndex('organizations_stripe_customer').on(table.stripeCustomerId),
    index('organizations_to_erase').on(table.id).where(sql`deleted_at IS NOT NULL AND erased_at IS NULL`),
  ],
)

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
    name: text().notNull().default('First key'),
    /** What a scoped key may do, on which instances; both null for an organization key, which may do everything. */
    permissions: text({ enum: permissions }).array(),
    instanceIds: uuid().array(),
    expiresAt: instant(),
    revokedAt: instant(),
    /** Written at most once a minute. */
    lastUsedAt: instant(),
    createdAt: instant().notNull().defaultNow(),
  },
  (table) => [
    uniqueIndex('api_keys_key_hash').on(table.keyHash),
    index('api_keys_organization').on(table.organizationId, table.createdAt, table.id),
  ],
)

/** The answers to requests that may be repeated: one a key and organization, kept for 24 hours. */
export const idempotencyKeys = pgTable(
  'idempotency_keys',
  {
    organizationId: uuid()
      .notNull()
      .references(() => organizations.id),
    key: text().notNull(),
    /** SHA-256 of the request: the same key with another one is refused. */
    requestHash: bytea().notNull(),
    /** The body, sealed because it may hold a new API key. */
    sealedAnswer: text(),
    expiresAt: instant().notNull(),
  },
  (table) => [
    primaryKey({ columns: [table.organizationId, table.key] }),
    index('idempotency_keys_expiry').on(table.expiresAt),
  ],
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
    /** The caller's own labels: string pairs. */
    metadata: jsonb().$type<Record<string, string>>().notNull().default({}),
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
    /** Not a fact but an argument to the trigger that writes the row's events, which empties it again. */
    changedBy: jsonb().$type<ChangedBy>(),
  },
  (table) => [
    index('instances_organization').on(table.organizationId, table.createdAt, table.id),
    index('instances_due').on(table.nextAttemptAt).where(sql`observed_generation < generation`),
    index('instances_to_erase').on(table.terminatedAt).where(sql`terminated_at IS NOT NULL AND sealed_token <> ''`),
    index('instances_settled_running').on(table.id).where(sql`desired_state = 'running' AND ready_at IS NOT NULL`),
  ],
)

/** The chat channels that an instance was ever connected to. */
export const channels = pgTable(
  'channels',
  {
    instanceId: uuid()
      .notNull()
      .references(() => instances.id),
    channel: text().notNull(),
    enabled: boolean().notNull(),
    /** What stands under `channels.<channel>` in the gateway's configuration, credentials included, sealed. */
    sealedConfig: text().notNull(),
    /** What a worker is doing for it; null when nothing is to be done. */
    step: text(),
    /** Why the last work for it failed; null when it did not. */
    errorMessage: text(),
    createdAt: instant().notNull().defaultNow(),
    updatedAt: instant().notNull().defaultNow(),
  },
  (table) => [primaryKey({ columns: [table.instanceId, table.channel] })],
)

/** The skills that were installed on an instance, or configured there. */
export const skills = pgTable(
  'skills',
  {
    instanceId: uuid()
      .notNull()
      .references(() => instances.id),
    /** OpenClaw's key of the skill. */
    name: text().notNull(),
    /** Where it came from, `@owner/slug`, at which version and content; null for those that OpenClaw brings along. */
    slug: text(),
    version: text(),
    digest: text(),
    /** What stands under `skills.entries.<name>` in the gateway's configuration, sealed; null when nothing was set. */
    sealedSettings: text(),
    createdAt: instant().notNull().defaultNow(),
    updatedAt: instant().notNull().defaultNow(),
  },
  (table) => [primaryKey({ columns: [table.instanceId, table.name] })],
)

/**
 * The history: one row for each change of an instance's state and for each mutation somebody asked for, written in the
 * transaction that made it. Those of instances are written by the trigger `instances_events` of the migrations. The ids
 * of one instance's events grow in the order in which its changes were committed: whoever writes one holds the row's
 * lock.
 */
export const events = pgTable(
  'events',
  {
    id: bigint({ mode: 'number' }).primaryKey().generatedAlwaysAsIdentity(),
    organizationId: uuid().notNull(),
    /** Null for what is the organization's: its keys, its tier, itself. */
    instanceId: uuid(),
    type: text().notNull(),
    /** What it was about beside the instance: a key, a channel, a skill, a path. */
    subject: text(),
    actorType: text({ enum: actorTypes }).notNull(),
    actorId: text(),
    requestId: text(),
    fromStatus: text(),
    toStatus: text(),
    generation: integer(),
    reason: text(),
    createdAt: instant().notNull().defaultNow(),
  },
  (table) => [
    index('events_instance').on(table.instanceId, table.id),
    index('events_organization').on(table.organizationId, table.id),
    index('events_created').on(table.createdAt),
  ],
)

/** Events of Stripe that were taken in: each counts once. */
export const stripeEvents = pgTable('stripe_events', {
  id: text().primaryKey(),
  receivedAt: instant().notNull().defaultNow(),
})

export type Organization = typeof organizations.$inferSelect
export type Instance = typeof instances.$inferSelect
export type NewInstance = typeof instances.$inferInsert
export type ApiKey = typeof apiKeys.$inferSelect
export type Event = typeof events.$inferSelect
export type Channel = typeof channels.$inferSelect
export type Skill = typeof skills.$inferSelect
