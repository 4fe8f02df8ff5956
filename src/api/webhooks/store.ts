import { randomBytes } from 'node:crypto'
import { and, desc, eq, lt, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { after, cutPage } from '#database/page.ts'
import { organizations } from '#database/schema.ts'
import { type deliveryStatuses, webhookDeliveries, webhooks } from '#database/webhook-schema.ts'
import { readHost } from '#egress/hosts.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { recordEvent } from '#history/record.ts'
import { isId, newId } from '#platform/ids.ts'
import type { Vault } from '#platform/secrets.ts'
import { endPending, resendQuery } from './queue.ts'

/** Maximum webhooks of an organization: each event of it is stored once for each. */
const maxWebhooks = 20
const secretBytes = 32

export type Webhook = typeof webhooks.$inferSelect
export type Delivery = typeof webhookDeliveries.$inferSelect

/** A secret in the form of Standard Webhooks. */
const newSecret = () => `whsec_${randomBytes(secretBytes).toString('base64')}`

/** Throws AppError `invalid_value` for a text that is not the address of a receiver. */
function checkUrl(text: string): string {
  const url = URL.canParse(text) ? new URL(text) : null
  const isGood =
    url !== null &&
    ['http:', 'https:'].includes(url.protocol) &&
    url.username + url.password === '' &&
    readHost(url.hostname) !== null
  if (!isGood) throw new AppError('invalid_value', texts.badWebhookUrl, { param: 'url' })
  return url.href
}

const isOwned = (organizationId: string, id: string) =>
  and(eq(webhooks.id, id), eq(webhooks.organizationId, organizationId))

/** Throws AppError `not_found` for an id that is missing, malformed or of another organization. */
export async function getWebhook(db: Db, organizationId: string, id: string): Promise<Webhook> {
  const [row] = isId(id) ? await db.select().from(webhooks).where(isOwned(organizationId, id)) : []
  if (!row) throw new AppError('not_found', texts.webhookNotFound)
  return row
}

export async function listWebhooks(
  db: Db,
  organizationId: string,
  { limit, position }: { limit: number; position: string | undefined },
) {
  const isListed = position === undefined ? undefined : after(webhooks, organizationId, position)
  const listed = await db
    .select()
    .from(webhooks)
    .where(and(eq(webhooks.organizationId, organizationId), isListed))
    .orderBy(desc(webhooks.createdAt), desc(webhooks.id))
    .limit(limit + 1)
  return cutPage(listed, limit)
}

export interface WebhookFields {
  url: string
  description: string
  /** Null: all types. */
  types: string[] | null
}

/**
 * Creates a webhook, in a transaction. Its own creation is its first event. Throws AppError `invalid_value` and
 * `too_many_resources`.
 */
export async function createWebhook(tx: Db, vault: Vault, organizationId: string, fields: WebhookFields) {
  const url = checkUrl(fields.url)
  await tx.select().from(organizations).where(eq(organizations.id, organizationId)).for('no key update')
  const existing = await tx.$count(webhooks, eq(webhooks.organizationId, organizationId))
  if (existing >= maxWebhooks) throw new AppError('too_many_resources', texts.tooManyWebhooks(maxWebhooks))
  const id = newId()
  const secret = newSecret()
  const sealedSecret = vault.seal(secret, `webhooks/${id}/sealed_secret`)
  const [row] = await tx
    .insert(webhooks)
    .values({ ...fields, id, organizationId, url, sealedSecret })
    .returning()
  await recordEvent(tx, { organizationId, subject: id })
  return { row: row as Webhook, secret }
}

/**
 * Changes what is sent. Disabling ends the pending deliveries; a webhook that is enabled again begins with the next event.
 * Throws AppError `not_found` and `invalid_value`.
 */
export async function patchWebhook(
  db: Db,
  organizationId: string,
  id: string,
  { enabled, url, ...fields }: Partial<WebhookFields> & { enabled?: boolean },
): Promise<Webhook> {
  const { disabledFor } = await getWebhook(db, organizationId, id)
  const isEnabling = enabled === true && disabledFor !== null
  return db.transaction(async (tx) => {
    const [row] = await tx
      .update(webhooks)
      .set({
        ...fields,
        id: sql`id`,
        ...(url !== undefined && { url: checkUrl(url) }),
        ...(isEnabling && { disabledFor: null, failingSince: null, enabledAt: sql`now()` }),
        ...(enabled === false && { disabledFor: sql`coalesce(disabled_for, 'owner')` }),
      })
      .where(isOwned(organizationId, id))
      .returning()
    if (!row) throw new AppError('not_found', texts.webhookNotFound)
    if (enabled === false) await endPending(tx, id)
    await recordEvent(tx, { organizationId, subject: id })
    return row
  })
}

/** Deletes a webhook with its deliveries. Throws AppError `not_found`. */
export async function deleteWebhook(db: Db, organizationId: string, id: string): Promise<void> {
  await getWebhook(db, organizationId, id)
  await db.transaction(async (tx) => {
    await tx.delete(webhooks).where(isOwned(organizationId, id))
    await recordEvent(tx, { organizationId, subject: id })
  })
}

/**
 * Gives a webhook another secret. The one before signs beside it for `seconds`. Call it in a transaction. Throws AppError
 * `not_found`.
 */
export async function rotateSecret(tx: Db, vault: Vault, organizationId: string, id: string, seconds: number) {
  await getWebhook(tx, organizationId, id)
  const [locked] = await tx.select().from(webhooks).where(isOwned(organizationId, id)).for('no key update')
  if (!locked) throw new AppError('not_found', texts.webhookNotFound)
  const previous = vault.unseal(locked.sealedSecret, `webhooks/${locked.id}/sealed_secret`)
  const secret = newSecret()
  const [row] = await tx
    .update(webhooks)
    .set({
      sealedSecret: vault.seal(secret, `webhooks/${locked.id}/sealed_secret`),
      sealedPreviousSecret: vault.seal(previous, `webhooks/${locked.id}/sealed_previous_secret`),
      previousSecretUntil: sql`now() + make_interval(secs => ${seconds})`,
    })
    .where(isOwned(organizationId, id))
    .returning()
  await recordEvent(tx, { organizationId, subject: locked.id })
  return { row: row as Webhook, secret }
}

/** A page of the deliveries of a webhook, newest first. Throws AppError `not_found`. */
export async function listDeliveries(
  db: Db,
  organizationId: string,
  id: string,
  {
    status,
    limit,
    position,
  }: { status: (typeof deliveryStatuses)[number] | undefined; limit: number; position: number | undefined },
) {
  const webhook = await getWebhook(db, organizationId, id)
  const rows = await db
    .select()
    .from(webhookDeliveries)
    .where(
      and(
        eq(webhookDeliveries.webhookId, webhook.id),
        position === undefined ? undefined : lt(webhookDeliveries.eventId, position),
        status && eq(webhookDeliveries.status, status),
      ),
    )
    .orderBy(desc(webhookDeliveries.eventId))
    .limit(limit + 1)
  const page = rows.slice(0, limit)
  return { rows: page, next: rows.length > limit ? page.at(-1)?.eventId.toString() : undefined }
}

/** Sends a delivery again, see `resendQuery`. Call it in a transaction. Throws AppError `not_found`. */
export async function resend(tx: Db, organizationId: string, id: string, eventId: number): Promise<Delivery> {
  const webhook = await getWebhook(tx, organizationId, id)
  await tx.$client.query(resendQuery, [webhook.id, eventId])
  const [row] = await tx
    .select()
    .from(webhookDeliveries)
    .where(and(eq(webhookDeliveries.webhookId, webhook.id), eq(webhookDeliveries.eventId, eventId)))
  if (!row) throw new AppError('not_found', texts.deliveryNotFound)
  await recordEvent(tx, { organizationId, subject: webhook.id })
  return row
}
