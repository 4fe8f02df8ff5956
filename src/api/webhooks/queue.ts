import { and, eq, inArray, isNull, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { deleteInBatches } from '#database/delete-batches.ts'
import { type Event, events } from '#database/schema.ts'
import { type DeliveryTry, webhookDeliveries, webhooks } from '#database/webhook-schema.ts'
import { recordEvent } from '#history/record.ts'
import { settledId } from '#history/settled.ts'

/** Maximum events per transaction. */
const batchSize = 1000
/** A claim lasts longer than a try: then another worker tries. */
const leaseSeconds = 60
/** Maximum tries of one webhook at once. */
const maxOpenOfWebhook = 8
/** The pauses after failed tries, in seconds, as Standard Webhooks proposes them: ten tries in three days. */
const pauses = [5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400]
const maxAttempts = pauses.length + 1
/** A webhook whose tries have all failed for this long is disabled. */
const failingDays = 3
/** How long deliveries are listed. */
export const keptDays = 30

/** The name of the id up to which events are queued, in the table `installation`. */
const positionName = 'webhook_position'

/** Gives the first pending delivery of these lines a time, if it has none. */
const beginLines = (tx: Pick<Db, '$client'>, webhookIds: readonly string[], lineIds: readonly string[]) =>
  tx.$client.query(
    `UPDATE webhook_deliveries d SET next_attempt_at = now()
     FROM unnest($1::uuid[], $2::uuid[]) AS line (webhook_id, id) CROSS JOIN LATERAL (
       SELECT event_id FROM webhook_deliveries
       WHERE webhook_id = line.webhook_id AND line_id = line.id AND status = 'pending'
       ORDER BY event_id LIMIT 1) AS first
     WHERE d.event_id = first.event_id AND d.webhook_id = line.webhook_id AND d.next_attempt_at IS NULL`,
    [webhookIds, lineIds],
  )

const insertQuery = `
  INSERT INTO webhook_deliveries (webhook_id, event_id, event_type, line_id)
  SELECT w.id, e.id, e.type, coalesce(e.instance_id, e.organization_id)
  FROM events e JOIN webhooks w ON w.organization_id = e.organization_id
  WHERE e.id > $1 AND e.id <= $2 AND w.id = ANY($3::uuid[]) AND w.disabled_for IS NULL AND e.created_at >= w.enabled_at
    AND (w.types IS NULL OR e.type = ANY(w.types) OR split_part(e.type, '.', 1) || '.*' = ANY(w.types))
  ON CONFLICT DO NOTHING RETURNING webhook_id AS "webhookId", line_id AS "lineId"`

/**
 * Queues the next settled events for the webhooks that want them, each once, and remembers how far it came: both or
 * neither. Returns whether more events wait. Concurrent calls wait for each other.
 */
export function queueEvents(db: Db): Promise<boolean> {
  return db.transaction(async (tx) => {
    const settled = await settledId(tx)
    await tx.$client.query('INSERT INTO installation (name, value) VALUES ($1, $2) ON CONFLICT DO NOTHING', [
      positionName,
      settled,
    ])
    const { rows: positions } = await tx.$client.query<{ value: string }>(
      'SELECT value FROM installation WHERE name = $1 FOR UPDATE',
      [positionName],
    )
    const position = Number(positions[0]?.value)
    const { rows: batch } = await tx.$client.query<{ last: string | null; organizations: string[] }>(
      `SELECT max(id) AS last, array_agg(DISTINCT organization_id) AS organizations FROM (
         SELECT id, organization_id FROM events WHERE id > $1 AND id <= $2 ORDER BY id LIMIT $3) AS next`,
      [position, settled, batchSize],
    )
    const last = Number(batch[0]?.last ?? 0)
    if (last === 0) return false
    // Locked, as when a delivery ends: it must see the next one of its line, or its end must be seen here.
    const { rows: wanting } = await tx.$client.query<{ id: string }>(
      `SELECT id FROM webhooks WHERE organization_id = ANY($1::uuid[]) AND disabled_for IS NULL
       ORDER BY id FOR NO KEY UPDATE`,
      [batch[0]?.organizations],
    )
    if (wanting.length > 0) {
      const ids = wanting.map(({ id }) => id)
      const { rows: queued } = await tx.$client.query<{ webhookId: string; lineId: string }>(insertQuery, [
        position,
        last,
        ids,
      ])
      const lines = [...new Map(queued.map((one) => [`${one.webhookId} ${one.lineId}`, one])).values()]
      if (lines.length > 0)
        await beginLines(
          tx,
          lines.map(({ webhookId }) => webhookId),
          lines.map(({ lineId }) => lineId),
        )
    }
    await tx.$client.query('UPDATE installation SET value = $2 WHERE name = $1', [positionName, last])
    return last < settled
  })
}

/** A delivery that this process tries now. */
export interface Claimed {
  webhookId: string
  eventId: number
  lineId: string
  attempts: number
  url: string
  sealedSecret: string
  /** Null unless it still signs. */
  sealedPreviousSecret: string | null
  /** The time of the claim by the clock of the database. */
  at: Date
  event: Event
}

/** Whether all recent tries of a webhook have failed. Both kinds have places of their own. */
export type Reliability = 'reliable' | 'failing'

const claimQuery = `
  WITH candidates AS (
    SELECT webhook_id, event_id FROM (
      SELECT d.webhook_id, d.event_id, d.next_attempt_at, coalesce(busy.open, 0) +
        row_number() OVER (PARTITION BY d.webhook_id ORDER BY d.next_attempt_at, d.event_id) AS place
      FROM webhook_deliveries d JOIN webhooks w ON w.id = d.webhook_id
      LEFT JOIN unnest($1::uuid[], $2::int[]) AS busy (id, open) ON busy.id = d.webhook_id
      WHERE d.next_attempt_at <= now() AND (w.failing_since IS NOT NULL) = $3
    ) AS due WHERE place <= ${maxOpenOfWebhook} ORDER BY next_attempt_at LIMIT $4)
  UPDATE webhook_deliveries d SET next_attempt_at = now() + interval '${leaseSeconds} seconds', attempts = attempts + 1
  FROM candidates c, webhooks w
  WHERE d.event_id = c.event_id AND d.webhook_id = c.webhook_id AND d.next_attempt_at <= now() AND w.id = d.webhook_id
  RETURNING d.webhook_id AS "webhookId", d.event_id::float8 AS "eventId", d.line_id AS "lineId", d.attempts, w.url,
    w.sealed_secret AS "sealedSecret", now() AS at,
    CASE WHEN w.previous_secret_until > now() THEN w.sealed_previous_secret END AS "sealedPreviousSecret"`

/** Claims up to `limit` due deliveries, the longest due first. `open` are the open tries of each webhook. */
export async function claimDeliveries(
  db: Db,
  kind: Reliability,
  limit: number,
  open: ReadonlyMap<string, number>,
): Promise<Claimed[]> {
  const values = [[...open.keys()], [...open.values()], kind === 'failing', limit]
  const { rows } = await db.$client.query<Omit<Claimed, 'event'>>(claimQuery, values)
  if (rows.length === 0) return []
  const ids = rows.map(({ eventId }) => eventId)
  const found = await db.select().from(events).where(inArray(events.id, ids))
  const byId = new Map(found.map((event) => [event.id, event]))
  return rows.flatMap((row) => {
    const event = byId.get(row.eventId)
    return event ? [{ ...row, event }] : []
  })
}

/** Ends all pending deliveries of a webhook: it gets none of them later. */
async function disable(tx: Db, webhookId: string, reason: 'gone' | 'failing'): Promise<void> {
  const [disabled] = await tx
    .update(webhooks)
    .set({ disabledFor: reason })
    .where(and(eq(webhooks.id, webhookId), isNull(webhooks.disabledFor)))
    .returning({ organizationId: webhooks.organizationId })
  if (!disabled) return
  await endPending(tx, webhookId)
  await recordEvent(tx, {
    organizationId: disabled.organizationId,
    type: 'webhook.disabled',
    subject: webhookId,
    reason: reason === 'gone' ? 'The receiver answered 410.' : `Every try has failed for ${failingDays} days.`,
  })
}

/** Marks the pending deliveries of a webhook as failed. */
export const endPending = (tx: Db, webhookId: string) =>
  tx
    .update(webhookDeliveries)
    .set({ status: 'failed', nextAttemptAt: null })
    .where(and(eq(webhookDeliveries.webhookId, webhookId), eq(webhookDeliveries.status, 'pending')))

/**
 * Stores a try. A success, or the last failure, lets the next delivery of its line begin; a success after failures makes
 * all deliveries of the webhook due. Does nothing when the lease has been lost, or the webhook was deleted.
 */
export function settleDelivery(db: Db, claimed: Claimed, one: DeliveryTry): Promise<void> {
  const { webhookId, eventId, lineId, attempts } = claimed
  const isDelivered = one.error === null
  const hasEnded = isDelivered || attempts >= maxAttempts
  const pause = pauses[attempts - 1] ?? 0
  return db.transaction(async (tx) => {
    const { rows } = await tx.$client.query<{ isFailing: boolean; isHopeless: boolean }>(
      `SELECT failing_since IS NOT NULL AS "isFailing",
         coalesce(failing_since < now() - interval '${failingDays} days', false) AS "isHopeless"
       FROM webhooks WHERE id = $1 FOR NO KEY UPDATE`,
      [webhookId],
    )
    const [webhook] = rows
    if (!webhook) return
    const { rowCount } = await tx.$client.query(
      `UPDATE webhook_deliveries SET tries = tries || $4::jsonb, status = $5,
         next_attempt_at = CASE WHEN $5 = 'pending' THEN now() + make_interval(secs => $6) END
       WHERE event_id = $1 AND webhook_id = $2 AND attempts = $3 AND status = 'pending'`,
      [
        eventId,
        webhookId,
        attempts,
        JSON.stringify([one]),
        isDelivered ? 'delivered' : hasEnded ? 'failed' : 'pending',
        pause,
      ],
    )
    if (rowCount === 0) return
    if (isDelivered === webhook.isFailing) {
      await tx
        .update(webhooks)
        .set({ failingSince: isDelivered ? null : sql`now()` })
        .where(eq(webhooks.id, webhookId))
    }
    if (isDelivered && webhook.isFailing) await tx.$client.query(hurryQuery, [webhookId])
    if (hasEnded) await beginLines(tx, [webhookId], [lineId])
    if (one.status === 410) await disable(tx, webhookId, 'gone')
    else if (!isDelivered && webhook.isHopeless) await disable(tx, webhookId, 'failing')
  })
}

/** Those that are due within the length of a lease may be claimed at the moment. */
const waitsForRetry = `next_attempt_at > now() + interval '${leaseSeconds} seconds'`

const hurryQuery = `UPDATE webhook_deliveries SET next_attempt_at = now() WHERE webhook_id = $1 AND ${waitsForRetry}`

/**
 * Sends a delivery again that has ended, and one now that waits for its next try. Others stay as they are: they are being
 * sent, or come after others of their instance.
 */
export const resendQuery = `
  UPDATE webhook_deliveries SET status = 'pending', next_attempt_at = now(),
    attempts = CASE status WHEN 'pending' THEN attempts ELSE 0 END
  WHERE webhook_id = $1 AND event_id = $2 AND (status <> 'pending' OR ${waitsForRetry})`

/** Deletes the deliveries of events from more than 30 days ago, in batches. */
export const deleteOldDeliveries = (db: Db, signal?: AbortSignal): Promise<void> =>
  deleteInBatches(
    db,
    webhookDeliveries,
    sql`event_id <= (
      SELECT max(id) FROM ${events} WHERE created_at < now() - make_interval(days => ${keptDays}))`,
    { signal },
  )
