import { and, eq, inArray, isNull, notExists, sql } from 'drizzle-orm'
import { deleteBudgetsOf } from '#budgets/store.ts'
import { type Db, retryOnDeadlock } from '#database/client.ts'
import { deleteInBatches, deleteSome } from '#database/delete-batches.ts'
import { deleteResponsesOfOrganization } from '#database/delete-responses.ts'
import { deleteCallsOf } from '#database/model-calls.ts'
import { apiKeys, channels, idempotencyKeys, instances, organizations, providerKeys, skills } from '#database/schema.ts'
import { webhooks } from '#database/webhook-schema.ts'
import { deleteEgressHostsOf } from '#egress/store.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { changedBy, recordEvent } from '#history/record.ts'
import { redactEvents } from '#history/retention.ts'
import { eraseInstancesOf, isNotErased } from '#instances/erase.ts'
import { raiseGeneration } from '#instances/intent.ts'
import { isDue, isNotTerminated } from '#instances/status.ts'
import type { Logger } from '#platform/log.ts'

/** Maximum instances per transaction: each runs triggers, writes an event and has credentials. */
const maxTerminated = 100
/** Maximum stored answers per statement: one may have megabytes. */
const maxAnswers = 100

export interface Deletion {
  /** The number of terminated instances, whose sandboxes workers must destroy. */
  terminated: number
  /** The hashes of the erased API keys. */
  keyHashes: Buffer[]
  /** The number of other erased secrets. */
  secrets: number
}

/**
 * Deletes an organization in one transaction, which is short whatever its size: erases its keys, and one batch of its
 * instances and stored answers. Workers then destroy the sandboxes. `eraseDeleted` terminates the other instances and
 * erases the rest. Concurrent creates wait for the lock of the row, and are refused. Throws AppError `unauthenticated`
 * for an unknown organization, and `invalid` when `name` is given and is not its name.
 */
export function deleteOrganization(db: Db, id: string, name?: string): Promise<Deletion> {
  const erase = async (tx: Db): Promise<Deletion> => {
    const [organization] = await tx
      .select({ name: organizations.name })
      .from(organizations)
      .where(and(eq(organizations.id, id), isNull(organizations.deletedAt)))
      .for('update')
    if (!organization) throw new AppError('invalid_api_key', texts.unknownKey)
    if (name !== undefined && name !== organization.name)
      throw new AppError('invalid_value', texts.otherName, { param: 'name' })
    const { terminated, credentials } = await terminateSome(tx, id)
    const keys = await eraseKeys(tx, id)
    const answers = await deleteSome(tx, idempotencyKeys, eq(idempotencyKeys.organizationId, id), maxAnswers)
    await tx
      .update(organizations)
      .set({
        name: '',
        egress: null,
        deletedAt: sql`now()`,
        updatedAt: sql`now()`,
        instanceCount: 0,
        // Without a known quantity, the next sync asks Stripe, and cancels the subscription.
        billedCount: null,
        billingAttempts: 0,
        nextBillingAt: sql`now()`,
      })
      .where(eq(organizations.id, id))
    await recordEvent(tx, { organizationId: id, type: 'organization.delete' })
    return { terminated, keyHashes: keys.hashes, secrets: keys.ofProviders + credentials + answers }
  }
  // This locks many instances. Other statements lock many in another order, so a deadlock is possible.
  return retryOnDeadlock(() => db.transaction(erase))
}

/**
 * Terminates up to `maxTerminated` instances of an organization, and erases the credentials of their channels and
 * skills: a terminated instance gets no new ones.
 */
async function terminateSome(tx: Db, organizationId: string): Promise<{ terminated: number; credentials: number }> {
  const some = tx
    .select({ id: instances.id })
    .from(instances)
    .where(and(eq(instances.organizationId, organizationId), isNotTerminated))
    .limit(maxTerminated)
  const terminated = await tx
    .update(instances)
    .set({
      ...raiseGeneration('terminate'),
      changedBy: changedBy({ type: 'instance.delete', reason: 'The organization was deleted.' }),
    })
    .where(and(inArray(instances.id, some), isNotTerminated))
    .returning({ id: instances.id })
  const ids = terminated.map(({ id }) => id)
  const ofChannels = await tx.delete(channels).where(inArray(channels.instanceId, ids))
  const ofSkills = await tx.delete(skills).where(inArray(skills.instanceId, ids))
  return { terminated: ids.length, credentials: (ofChannels.rowCount ?? 0) + (ofSkills.rowCount ?? 0) }
}

/** Erases the valid keys, at most 1,000, and those of model providers. */
async function eraseKeys(tx: Db, id: string): Promise<{ hashes: Buffer[]; ofProviders: number }> {
  const isGood = and(eq(apiKeys.organizationId, id), isNull(apiKeys.revokedAt))
  const erased = await tx.delete(apiKeys).where(isGood).returning({ hash: apiKeys.keyHash })
  const { rowCount } = await tx.delete(providerKeys).where(eq(providerKeys.organizationId, id))
  return { hashes: erased.map(({ hash }) => hash), ofProviders: rowCount ?? 0 }
}

/** Erases keys, webhooks and stored answers, including those that open requests added after the deletion. */
async function eraseSecrets(db: Db, id: string, signal?: AbortSignal): Promise<void> {
  await eraseKeys(db, id)
  await deleteInBatches(db, apiKeys, eq(apiKeys.organizationId, id), { signal })
  await deleteInBatches(db, webhooks, eq(webhooks.organizationId, id), { rows: 1, signal })
  await deleteInBatches(db, idempotencyKeys, eq(idempotencyKeys.organizationId, id), { rows: maxAnswers, signal })
}

/**
 * Erases the other secrets of deleted organizations, and terminates their other instances: workers find these rows
 * without the queue. When all sandboxes of an organization are destroyed, erases the rest and logs one line as the
 * proof. The rows stay, without secrets and names, so that a sandbox found later can still be attributed. After a throw
 * of the signal's reason or a crash, the next call continues.
 */
export async function eraseDeleted(db: Db, log: Pick<Logger, 'info'>, signal?: AbortSignal): Promise<void> {
  const terminateNext = (id: string) => retryOnDeadlock(() => db.transaction((tx) => terminateSome(tx, id)))
  const deleted = await db
    .select({ id: organizations.id, hasLiving: sql<boolean>`${hasLiving}` })
    .from(organizations)
    .where(isDeleted)
  for (const { id } of deleted) await eraseSecrets(db, id, signal)
  for (const { id } of deleted.filter(({ hasLiving }) => hasLiving)) {
    while ((await terminateNext(id)).terminated > 0) signal?.throwIfAborted()
  }
  const unerased = await db
    .select({ id: organizations.id })
    .from(organizations)
    .where(isToErase)
    .orderBy(organizations.deletedAt)
  for (const { id } of unerased) {
    signal?.throwIfAborted()
    await eraseOrganization(db, id, log, signal)
  }
}

const isDeleted = sql`${organizations.deletedAt} IS NOT NULL AND ${organizations.erasedAt} IS NULL`
const hasLiving = sql`EXISTS (
  SELECT FROM ${instances} WHERE ${instances.organizationId} = ${organizations.id} AND ${isNotTerminated})`
const isToErase = sql`${isDeleted} AND NOT EXISTS (
  SELECT FROM ${instances} WHERE ${instances.organizationId} = ${organizations.id}
  AND (${isDue} OR ${isNotTerminated}))`

/**
 * Skips an organization that another worker is erasing. Logs the line before the commit: a crash in between causes two
 * lines, never none.
 */
async function eraseOrganization(
  db: Db,
  organizationId: string,
  log: Pick<Logger, 'info'>,
  signal?: AbortSignal,
): Promise<void> {
  // In separate transactions: a common one could take too long.
  await eraseInstancesOf(db, organizationId, signal)
  await deleteResponsesOfOrganization(db, organizationId, signal)
  await deleteCallsOf(db, organizationId, signal)
  await deleteBudgetsOf(db, organizationId, signal)
  await deleteEgressHostsOf(db, organizationId, signal)
  const after = await redactEvents(db, organizationId, { signal })
  await db.transaction(async (tx) => {
    const unerasedInstances = tx
      .select()
      .from(instances)
      .where(and(eq(instances.organizationId, organizationId), isNotErased))
    const [organization] = await tx
      .select({ deletedAt: organizations.deletedAt })
      .from(organizations)
      .where(and(eq(organizations.id, organizationId), isToErase, notExists(unerasedInstances)))
      .for('update', { skipLocked: true })
    if (!organization) return
    await eraseSecrets(tx, organizationId)
    await recordEvent(tx, { organizationId, type: 'organization.erased' })
    await redactEvents(tx, organizationId, { after }) // those of open requests
    const erased = await tx.$count(instances, eq(instances.organizationId, organizationId))
    log.info({ organizationId, instances: erased, deletedAt: organization.deletedAt }, 'organization erased')
    await tx.update(organizations).set({ erasedAt: sql`now()` }).where(eq(organizations.id, organizationId))
  })
}
