import { and, eq, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type ChangedBy, events } from '#database/schema.ts'
import { currentOrigin, markEvent } from './actor.ts'
import type { EventType } from './event-types.ts'

interface Change {
  type?: EventType
  reason?: string
  silent?: boolean
}

/**
 * The value of an instance's column `changed_by`: the actor, the request and the reason of this change. A trigger on
 * the table (`record_instance_event` in migrations/) writes the event from it in the statement's own transaction, and
 * empties the column. Without a type here or in the origin, the trigger derives it from the change. With `silent` it
 * writes none.
 */
export function changedBy({ type, reason, silent }: Change = {}): ChangedBy {
  markEvent()
  const { actor, requestId, subject, type: requested } = currentOrigin()
  const eventType = type ?? requested
  return {
    actor_type: actor.type,
    ...(actor.id !== undefined && { actor_id: actor.id }),
    ...(requestId !== undefined && { request_id: requestId }),
    ...(eventType !== undefined && { type: eventType }),
    ...(subject !== undefined && { subject }),
    ...(reason !== undefined && { reason }),
    ...(silent !== undefined && { silent }),
  }
}

/** An event about anything but the row of an instance. */
interface NewEvent {
  organizationId: string
  instanceId?: string | null
  /** The origin's by default. */
  type?: EventType
  /** The origin's by default. */
  subject?: string | undefined
  reason?: string | undefined
}

/** Writes an event about `subject`, unless the instance has one of this type about it. */
export const recordEventOnce = (db: Db, event: NewEvent & { instanceId: string; type: EventType; subject: string }) =>
  db.transaction(async (tx) => {
    await tx.execute(sql`SELECT pg_advisory_xact_lock(hashtextextended(${event.subject}, 0))`)
    const isSame = and(
      eq(events.instanceId, event.instanceId),
      eq(events.type, event.type),
      eq(events.subject, event.subject),
    )
    if ((await tx.$count(events, isSame)) === 0) await recordEvent(tx, event)
  })

/** Writes an event with the current origin, in the transaction of `db` if it is one. Throws when neither gives a type. */
export async function recordEvent(db: Db, event: NewEvent): Promise<void> {
  markEvent()
  const { actor, requestId, subject, type: requested } = currentOrigin()
  const type = event.type ?? requested
  if (type === undefined) throw new Error('an event without a type')
  await db.insert(events).values({ subject, ...event, type, actorType: actor.type, actorId: actor.id, requestId })
}
