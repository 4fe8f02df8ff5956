import { sql } from 'drizzle-orm'
import { bigint, index, integer, jsonb, pgTable, primaryKey, text, uuid } from 'drizzle-orm/pg-core'
import { events, instant, organizations } from './schema.ts'

/** Why a webhook gets nothing: its owner disabled it, its receiver answered 410, or every try failed for days. */
export const disablings = ['owner', 'gone', 'failing'] as const

/** The receivers of events, of which each is an address of a customer. */
export const webhooks = pgTable(
  'webhooks',
  {
    id: uuid().primaryKey(),
    organizationId: uuid()
      .notNull()
      .references(() => organizations.id),
    url: text().notNull(),
    description: text().notNull().default(''),
    /** The filters of types as the caller wrote them; null: all types. */
    types: text().array(),
    sealedSecret: text().notNull(),
    /** The secret before the last rotation, which signs too until then. */
    sealedPreviousSecret: text(),
    previousSecretUntil: instant(),
    disabledFor: text({ enum: disablings }),
    /** Since when every try has failed; null after one that succeeded. */
    failingSince: instant(),
    /** Events before this time are not delivered. */
    enabledAt: instant().notNull().defaultNow(),
    createdAt: instant().notNull().defaultNow(),
  },
  (table) => [index('webhooks_organization').on(table.organizationId, table.createdAt, table.id)],
)

export const deliveryStatuses = ['pending', 'delivered', 'failed'] as const

/** One try to deliver an event, as the API shows it. */
export interface DeliveryTry {
  /** ISO 8601. */
  at: string
  duration_ms: number
  /** The HTTP status of the receiver; null without an answer. */
  status: number | null
  /** Why it failed; null for a success. */
  error: string | null
}

/**
 * The events for a webhook. They are delivered in the order of their ids within a line, that of an instance: only the
 * first pending one of a line has a time, and its end gives the next one a time. The row goes with its event.
 */
export const webhookDeliveries = pgTable(
  'webhook_deliveries',
  {
    webhookId: uuid()
      .notNull()
      .references(() => webhooks.id, { onDelete: 'cascade' }),
    eventId: bigint({ mode: 'number' })
      .notNull()
      .references(() => events.id, { onDelete: 'cascade' }),
    eventType: text().notNull(),
    /** The instance of the event, or the organization for an event without one. */
    lineId: uuid().notNull(),
    status: text({ enum: deliveryStatuses }).notNull().default('pending'),
    /** When it is due. The claim moves it ahead: it is also the lease. Null: it waits for another one, or has ended. */
    nextAttemptAt: instant(),
    /** The number of claims since it was queued or sent again. It is the fencing token of a claim. */
    attempts: integer().notNull().default(0),
    tries: jsonb().$type<DeliveryTry[]>().notNull().default([]),
  },
  (table) => [
    primaryKey({ columns: [table.eventId, table.webhookId] }),
    index('webhook_deliveries_webhook').on(table.webhookId, table.eventId),
    index('webhook_deliveries_pending').on(table.webhookId, table.lineId, table.eventId).where(sql`status = 'pending'`),
    index('webhook_deliveries_due').on(table.nextAttemptAt).where(sql`next_attempt_at IS NOT NULL`),
  ],
)
