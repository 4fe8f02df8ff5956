import { type SQL, sql } from 'drizzle-orm'
import {
  type AnyPgColumn,
  bigint,
  boolean,
  check,
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
import type { HeldLimits, ResourceLimits } from '#settings/resources.ts'

export const modelProviders = ['anthropic', 'openai', 'gemini'] as const
export type ModelProvider = (typeof modelProviders)[number]

export const desiredStates = ['running', 'stopped', 'terminated'] as const
export type DesiredState = (typeof desiredStates)[number]

export const permissions = ['read', 'interact', 'sessions', 'configure', 'files', 'channels', 'approve'] as const
export type Permission = (typeof permissions)[number]

export const actorTypes = ['key', 'operator', 'stripe', 'worker'] as const
export type ActorType = (typeof actorTypes)[number]

export const tiers = ['shrimp', 'crab', 'lobster', 'whale'] as const
export type Tier = (typeof tiers)[number]

export const approvalModes = ['auto', 'ask', 'off'] as const
/** Whether an agent runs commands at once, asks before each, or runs none. */
export type ApprovalMode = (typeof approvalModes)[number]

export const egressModes = ['open', 'allowlist', 'report', 'none'] as const
export type EgressMode = (typeof egressModes)[number]

/** The shard of an instance, from 0 to 255: the last byte of its id, which is random. */
export const shardOf = (id: AnyPgColumn | SQL) => sql<number>`get_byte(uuid_send(${id}), 15)`

/** The hosts that agents may reach, as the caller wrote them. */
export interface EgressPolicy {
  mode: EgressMode
  /** Names, `*.` and a name, or addresses, each with or without a port. */
  hosts: string[]
}

const bytea = customType<{ data: Buffer }>({ dataType: () => 'bytea' })
export const instant = () => timestamp({ withTimezone: true, mode: 'date' })

/** The actor, the request and the reason of a change, for the event that the trigger writes. */
export interface ChangedBy {
  actor_type: ActorType
  actor_id?: string
  request_id?: string
  /** Undefined if the trigger derives it from the change, such as `instance.running`. */
  type?: string
  subject?: string
  reason?: string
  /** Whether the change itself writes no event; its consequences do. */
  silent?: boolean
}

/** A gateway that works and does not answer. */
interface Busy {
  /** The time of its main thread's last observed context switch, ISO 8601. */
  since: string
  /** The number of context switches then. */
  switches: number
}

/** Values of this installation by name, such as its id. */
export const installation = pgTable('installation', {
  name: text().primaryKey(),
  value: text().notNull(),
})

/** Where the tools of an agent run: beside its gateway, or in a separate room. */
export const isolations = ['one_room', 'two_rooms'] as const
export type Isolation = (typeof isolations)[number]

export const organizations = pgTable(
  'organizations',
  {
    id: uuid().primaryKey(),
    name: text().notNull(),
    subscriptionTier: text({ enum: tiers }).notNull(),
    /** The maximum number of instances; null means no limit. */
    instanceLimit: integer(),
    /**
     * The number of instances that are not terminated. The statements that create and terminate instances change it.
     */
    instanceCount: integer().notNull().default(0),
    /** Both are null without a customer at Stripe, and the subscription is null without a paid plan. */
    stripeCustomerId: text(),
    stripeSubscriptionId: text(),
    /** The quantity at Stripe, to be updated when it differs from `instanceCount`; null means unknown. */
    billedCount: integer(),
    billingAttempts: integer().notNull().default(0),
    /** The time of the next call of Stripe. The caller first moves it ahead: it is also the lease and its token. */
    nextBillingAt: instant().notNull().defaultNow(),
    createdAt: instant().notNull().defaultNow(),
    updatedAt: instant().notNull().defaultNow(),
    /** The egress policy of its instances without their own; null is the default. */
    egress: jsonb().$type<EgressPolicy>(),
    /** The limits of its instances without their own. */
    resources: jsonb().$type<Partial<ResourceLimits>>().notNull().default({}),
    /** The maxima of its instances, in place of the operator's general ones. Set by the operator. */
    maxResources: jsonb().$type<Partial<ResourceLimits>>().notNull().default({}),
    /** The isolation of a new instance if its creator sets none. */
    isolation: text({ enum: isolations }).notNull().default('one_room'),
    /** Set by the operator: all API keys are refused, and workers stop its instances, until it is null again. */
    suspendedAt: instant(),
    deletedAt: instant(),
    /** When the last sandbox of a deleted organization was destroyed. */
    erasedAt: instant(),
  },
  (table) => [
    uniqueIndex('organizations_stripe_customer').on(table.stripeCustomerId),
    index('organizations_suspended').on(table.id).where(sql`suspended_at IS NOT NULL`),
    index('organizations_to_erase').on(table.id).where(sql`deleted_at IS NOT NULL AND erased_at IS NULL`),
  ],
)

/** Model provider keys, sealed, one for each organization and provider. */
export const providerKeys = pgTable(
  'provider_keys',
  {
    organizationId: uuid()
      .notNull()
      .references(() => organizations.id),
    provider: text({ enum: modelProviders }).notNull(),
    sealedKey: text().notNull(),
    /** When the key was set. */
    updatedAt: instant().notNull().defaultNow(),
    /** When the provider last refused the key, to the minute; null if Chowder knows of no refusal. */
    refusedAt: instant(),
  },
  (table) => [primaryKey({ columns: [table.organizationId, table.provider] })],
)

/** API keys, of which only the SHA-256 is stored. */
export const apiKeys = pgTable(
  'api_keys',
  {
    id: uuid().primaryKey(),
    organizationId: uuid()
      .notNull()
      .references(() => organizations.id),
    keyHash: bytea().notNull(),
    /** The first characters, by which people recognize a key. */
    keyPrefix: text().notNull(),
    name: text().notNull().default('First key'),
    /**
     * The permissions and the instances of a scoped key; both null for an organization key, which has all permissions.
     */
    permissions: text({ enum: permissions }).array(),
    instanceIds: uuid().array(),
    /** The sessions visible to a scoped key; all of its instances when both are null. */
    sessionIds: text().array(),
    sessionPrefix: text(),
    expiresAt: instant(),
    revokedAt: instant(),
    /** Written at most once a minute. */
    lastUsedAt: instant(),
    createdAt: instant().notNull().defaultNow(),
  },
  (table) => [
    uniqueIndex('api_keys_key_hash').on(table.keyHash),
    index('api_keys_organization').on(table.organizationId, table.createdAt, table.id),
    index('api_keys_revoked').on(table.revokedAt).where(sql`revoked_at IS NOT NULL`),
  ],
)

/** The answers to repeatable requests, one for each organization and idempotency key, stored for 24 hours. */
export const idempotencyKeys = pgTable(
  'idempotency_keys',
  {
    organizationId: uuid()
      .notNull()
      .references(() => organizations.id),
    key: text().notNull(),
    /** The SHA-256 of the request: another request with the same key is refused. */
    requestHash: bytea().notNull(),
    /** The body, sealed because it may contain a new API key. */
    sealedAnswer: text(),
    /** The HTTP status of the answer; null is 201. */
    status: integer(),
    /**
     * The process that carries out the request, until its answer is stored. The key is free once that process is dead.
     */
    processId: uuid(),
    expiresAt: instant().notNull(),
  },
  (table) => [
    primaryKey({ columns: [table.organizationId, table.key] }),
    index('idempotency_keys_expiry').on(table.expiresAt),
  ],
)

/**
 * The instances, one OpenClaw agent each. There is no status column: `instances/status.ts` computes the status. A row
 * is due while `observedGeneration` is less than `generation`, and settled when they are equal.
 */
export const instances = pgTable(
  'instances',
  {
    id: uuid().primaryKey(),
    organizationId: uuid()
      .notNull()
      .references(() => organizations.id),
    name: text().notNull(),
    /** The caller's own id of the instance. An organization has it once among instances that are not terminated. */
    externalId: text(),
    /** The caller's labels. */
    metadata: jsonb().$type<Record<string, string>>().notNull().default({}),
    modelProvider: text({ enum: modelProviders }).notNull(),
    /** The driver of this row's sandbox. Workers with another driver ignore the row. */
    sandboxDriver: text().notNull(),
    /** The name of the region that it runs in; null for the region of rows without one: see `instances/regions.ts`. */
    region: text(),
    openclawVersion: text().notNull(),
    /** Whether its tools run beside its gateway or in a separate room, from its next start on. */
    isolation: text({ enum: isolations }).notNull().default('one_room'),
    /** The agent's model as the caller wrote it; null: the overrides or the default apply. */
    model: text(),
    approvals: text({ enum: approvalModes }).notNull().default('auto'),
    /** The caller's system prompt, sealed; null: the overrides apply, or there is none. */
    sealedInstructions: text(),
    /** The caller's configuration overrides as JSON, sealed because they may contain tokens. */
    sealedConfig: text(),
    /** The hosts that its agent may reach; null: the policy of its organization applies. */
    egress: jsonb().$type<EgressPolicy>(),
    /** Its own limits, as far as the caller has set them. */
    resources: jsonb().$type<Partial<ResourceLimits>>().notNull().default({}),
    /** How long it may be idle before it sleeps; null: it never sleeps. */
    idleTimeoutSeconds: integer(),
    /** Whether requests start it when it sleeps. */
    wakeOnRequest: boolean().notNull().default(true),
    /** Models that turns have asked for and that no table lists, the latest last. */
    unlistedModels: text().array().notNull().default([]),

    // Intent: written by the API.
    desiredState: text({ enum: desiredStates }).notNull(),
    generation: integer().notNull().default(1),
    /** Stopped because of its disk limit or a drain of its region, or asleep because it was idle; null otherwise. */
    stoppedFor: text({ enum: ['disk', 'drain', 'idle'] }),
    /** When a sleeping agent is started for its own cron; null if its cron has nothing to do. */
    wakesAt: instant(),
    /** Stopped because its organization is suspended: a resume restarts it. */
    isSuspended: boolean().notNull().default(false),
    /** The generation of a restart, or of a start that overtook a stop; null once a worker has ended the gateway. */
    restartGeneration: integer(),

    // Observation: written under the lease.
    observedGeneration: integer().notNull().default(0),
    /** The current step; null when settled. */
    step: text(),
    /** The number of claims by workers since the last intent or lasting success. */
    attempts: integer().notNull().default(0),
    nextAttemptAt: instant().notNull().defaultNow(),
    /** The fencing token: changes with each lease, and every write of the holder compares it. */
    leaseToken: bigint({ mode: 'number' }).notNull().default(0),
    leaseUntil: instant().notNull().defaultNow(),
    /** The platform's name for the sandbox, for display only. */
    sandboxId: text(),
    /** The Endpoint of the gateway, see `sandbox/driver.ts`. Not public. */
    endpoint: jsonb(),
    /** The gateway's token, sealed. */
    sealedToken: text().notNull(),
    /**
     * The token that the gateway sends to the relay in place of a provider's key, sealed; null before its first start.
     */
    sealedRelayToken: text(),
    /**
     * The SHA-256 of that token while the relay accepts it; null from each intent to start or stop until the next
     * start.
     */
    relayTokenHash: bytea(),
    /** When the gateway last became healthy; null while it is not known to run. */
    readyAt: instant(),
    /** The limits of its sandbox; null before its first start. */
    limits: jsonb().$type<HeldLimits>(),
    /** Set while a gateway that was ready works and does not answer: see `checkHealth`. */
    busy: jsonb().$type<Busy>(),
    errorMessage: text(),

    createdAt: instant().notNull().defaultNow(),
    updatedAt: instant().notNull().defaultNow(),
    terminatedAt: instant(),
    /** An argument of the trigger that writes the row's events. The trigger sets it to null. */
    changedBy: jsonb().$type<ChangedBy>(),
  },
  (table) => [
    check('instances_generations', sql`observed_generation BETWEEN 0 AND generation`),
    check('instances_attempts_count', sql`attempts >= 0`),
    check('instances_terminated', sql`(desired_state = 'terminated') = (terminated_at IS NOT NULL)`),
    index('instances_organization').on(table.organizationId, table.createdAt, table.id),
    // For lists: terminated instances are kept, and may be most of an organization's.
    index('instances_live')
      .on(table.organizationId, table.createdAt, table.id)
      .where(sql`desired_state <> 'terminated'`),
    uniqueIndex('instances_external_id')
      .on(table.organizationId, table.externalId)
      .where(sql`external_id IS NOT NULL AND desired_state <> 'terminated'`),
    // Without the empty ones, which most creates write.
    index('instances_metadata').using('gin', sql`metadata jsonb_path_ops`).where(sql`metadata <> '{}'`),
    index('instances_due').on(table.nextAttemptAt).where(sql`observed_generation < generation`),
    // For claims: the oldest due row of each organization, and the leases of each.
    index('instances_claim')
      .on(table.sandboxDriver, sql`coalesce(region, '')`, table.organizationId, table.nextAttemptAt)
      .where(sql`observed_generation < generation`),
    index('instances_leased').on(table.leaseUntil, table.organizationId).where(sql`observed_generation < generation`),
    uniqueIndex('instances_relay_token').on(table.relayTokenHash).where(sql`relay_token_hash IS NOT NULL`),
    index('instances_suspended').on(table.id).where(sql`is_suspended`),
    index('instances_wakes_at').on(table.wakesAt).where(sql`wakes_at IS NOT NULL`),
    index('instances_of_organization_to_erase')
      .on(table.organizationId, table.terminatedAt, table.id)
      .where(sql`terminated_at IS NOT NULL AND name <> ''`),
    index('instances_to_erase').on(table.terminatedAt).where(sql`terminated_at IS NOT NULL AND name <> ''`),
    index('instances_settled_running').on(table.id).where(sql`desired_state = 'running' AND ready_at IS NOT NULL`),
    // For the workers, each of which probes the instances of its shards.
    index('instances_shard').on(shardOf(table.id), table.id).where(sql`desired_state = 'running'`),
    index('instances_attempts').on(table.id).where(sql`attempts > 0 AND ready_at IS NOT NULL`),
  ],
)

/**
 * The columns of an instance that may hold secrets, with their values once the sandbox of a terminated instance is
 * destroyed.
 */
export const erasedSecrets = {
  sealedInstructions: null,
  sealedConfig: null,
  sealedToken: '',
  sealedRelayToken: null,
} as const

/** The columns of an instance with a caller's text, with their values after the erasure. */
export const erasedColumns = {
  ...erasedSecrets,
  name: '',
  externalId: null,
  metadata: {},
  model: null,
  unlistedModels: [] as string[],
  egress: null,
} as const

/**
 * The size of the files of sandboxes at the last measurement, plus the API's writes since then. Unlogged: it is
 * measured again.
 */
export const instanceUse = pgTable(
  'instance_use',
  {
    instanceId: uuid().primaryKey(),
    diskBytes: bigint({ mode: 'number' }),
    /**
     * Whether they had reached the limit, or a write was refused: then they are measured also while the agent is
     * stopped.
     */
    isFull: boolean().notNull().default(false),
  },
  (table) => [index('instance_use_full').on(table.instanceId).where(sql`is_full`)],
)

/** The chat channels of instances, including disabled ones. */
export const channels = pgTable(
  'channels',
  {
    instanceId: uuid()
      .notNull()
      .references(() => instances.id),
    channel: text().notNull(),
    enabled: boolean().notNull(),
    /** The values of `channels.<channel>` in the gateway's configuration, credentials included, sealed. */
    sealedConfig: text().notNull(),
    /** The current step of a worker for this channel; null when settled. */
    step: text(),
    /** The error of the last work for this channel; null after a success. */
    errorMessage: text(),
    createdAt: instant().notNull().defaultNow(),
    updatedAt: instant().notNull().defaultNow(),
  },
  (table) => [primaryKey({ columns: [table.instanceId, table.channel] })],
)

/** The skills that were installed or configured on instances. */
export const skills = pgTable(
  'skills',
  {
    instanceId: uuid()
      .notNull()
      .references(() => instances.id),
    /** OpenClaw's key of the skill. */
    name: text().notNull(),
    /** The reference `@owner/slug`, the version and the digest of an installed skill; null for skills of OpenClaw. */
    slug: text(),
    version: text(),
    digest: text(),
    /** The values of `skills.entries.<name>` in the gateway's configuration, sealed; null when none were set. */
    sealedSettings: text(),
    createdAt: instant().notNull().defaultNow(),
    updatedAt: instant().notNull().defaultNow(),
  },
  (table) => [primaryKey({ columns: [table.instanceId, table.name] })],
)

/**
 * The history: one row for each change of an instance's state and for each requested mutation, written in the
 * transaction of the change. The trigger `instances_events` of the migrations writes the events of instances. The ids
 * of an instance's events have the order in which its changes were committed, because a writer holds the lock of the
 * instance's row. Other events may be committed in another order: the function `settled_event_id` returns the id up to
 * which all are committed.
 */
export const events = pgTable(
  'events',
  {
    id: bigint({ mode: 'number' }).primaryKey().generatedAlwaysAsIdentity(),
    organizationId: uuid().notNull(),
    /** Null for events of the organization: its keys, its tier, its deletion. */
    instanceId: uuid(),
    type: text().notNull(),
    /** The object of the event within the instance or organization: a key, a channel, a skill, a path. */
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
    index('events_instance_type').on(table.instanceId, table.type, table.id),
    index('events_organization_type').on(table.organizationId, table.type, table.id),
    index('events_request').on(table.organizationId, table.requestId, table.id).where(sql`request_id IS NOT NULL`),
    index('events_created').on(table.createdAt),
  ],
)

/**
 * The processes of Chowder. Each beats while it lives, see `database/processes.ts`, and deletes its row in its drain; a
 * killed one leaves it. The migration makes the table UNLOGGED: after a crash of PostgreSQL it fills again.
 */
export const processes = pgTable('processes', {
  id: uuid().primaryKey(),
  role: text().notNull().default(''),
  version: text().notNull().default(''),
  commit: text().notNull().default(''),
  host: text().notNull().default(''),
  pid: integer().notNull().default(0),
  /** The time since which it has beaten without a gap. */
  since: instant().notNull().defaultNow(),
  seenAt: instant().notNull().defaultNow(),
  /** The regions whose instances it works on; none for a draining process or one that is not a worker. */
  regions: text().array().notNull().default([]),
})

/** The ids of Stripe's events that were processed, so that each is processed once. */
export const stripeEvents = pgTable('stripe_events', {
  id: text().primaryKey(),
  receivedAt: instant().notNull().defaultNow(),
})

export type Organization = typeof organizations.$inferSelect
export type Instance = typeof instances.$inferSelect
export type ApiKey = typeof apiKeys.$inferSelect
export type Event = typeof events.$inferSelect
export type Channel = typeof channels.$inferSelect
export type Skill = typeof skills.$inferSelect
