import { sql } from 'drizzle-orm'
import { boolean, index, integer, jsonb, pgTable, text, uuid } from 'drizzle-orm/pg-core'
import { instances, instant } from './schema.ts'

/** The ways to go on with a run that is due while the one before it goes on. */
export const overlaps = ['skip', 'buffer_one', 'cancel_other'] as const
export type Overlap = (typeof overlaps)[number]

export const runOutcomes = ['started', 'skipped', 'failed'] as const

/** A run that was due, as the API shows it. */
export interface ScheduleRun {
  /** ISO 8601: when it was due, and when that was decided. */
  due_at: string
  at: string
  outcome: (typeof runOutcomes)[number]
  /** The response that it began. */
  response_id: string | null
  /** Why it was skipped or failed. */
  reason: string | null
}

/** Turns of agents that begin by themselves. One is due once `nextAt` is past. */
export const schedules = pgTable(
  'schedules',
  {
    id: uuid().primaryKey(),
    organizationId: uuid().notNull(),
    instanceId: uuid()
      .notNull()
      .references(() => instances.id),
    name: text().notNull(),
    /** Five fields; null for a schedule that runs once, at `at`. */
    cron: text(),
    timeZone: text().notNull(),
    at: instant(),
    sealedInput: text().notNull(),
    /** The gateway's key of the session. */
    sessionKey: text().notNull(),
    model: text().notNull(),
    overlap: text({ enum: overlaps }).notNull(),
    catchUpSeconds: integer().notNull(),
    jitterSeconds: integer().notNull(),
    /** After so many failures in a row it is paused; null: never. */
    pauseOnFailures: integer(),
    failures: integer().notNull().default(0),
    pausedFor: text({ enum: ['owner', 'failures'] }),
    /** Null while it is paused, and after its only run. */
    nextAt: instant(),
    /** When the run that waits for the one before it was due. */
    waitingSince: instant(),
    /** Whether the next run was asked for, so that it does not wait for its time. */
    isAskedFor: boolean().notNull().default(false),
    /** The response of the last run, until its end is counted. */
    lastResponseId: uuid(),
    /** The last runs, the newest first. */
    runs: jsonb().$type<ScheduleRun[]>().notNull().default([]),
    createdAt: instant().notNull().defaultNow(),
  },
  (table) => [
    index('schedules_instance').on(table.instanceId, table.createdAt, table.id),
    index('schedules_due').on(table.nextAt).where(sql`next_at IS NOT NULL`),
  ],
)
