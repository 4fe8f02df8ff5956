import { and, eq, inArray, isNull, notExists, sql } from 'drizzle-orm'
import { deleteBudgetsOf } from '#budgets/store.ts'
import { type Db, retryOnDeadlock } from '#database/client.ts'
import { deleteResponsesOfOrganization } from '#database/delete-responses.ts'
import { deleteCallsOf } from '#database/model-calls.ts'
import { apiKeys, channels, idempotencyKeys, instances, organizations, providerKeys, skills } from '#database/schema.ts'
import { changedBy, recordEvent } from '#history/record.ts'
import { redactEvents } from '#history/retention.ts'
import { eraseInstancesOf, isNotErased } from '#instances/erase.ts'
import { raiseGeneration } from '#instances/intent.ts'
import { type InstanceRef, instanceRefColumns } from '#instances/queue.ts'
import { isDue, isNotTerminated } from '#instances/status.ts'
import { AppError } from '#platform/errors.ts'
import type { Logger } from '#platform/log.ts'
import { texts } from '#platform/texts.ts'

/** Instances that one statement terminates: each has its trigger and its event. */
const maxTerminated = 250

export interface Deletion {
  /** The first instances whose sandboxes workers must destroy. */
  due: InstanceRef[]
  /** The hashes of the erased API keys. */
  keyHashes: Buffer[]
  /** The number of other secrets that were erased. */
  secrets: number
}

/**
 * Deletes an organization in one transaction: erases its keys and secrets, and terminates its instances, up to
 * `maxTerminated`. Workers then destroy the sandboxes. `eraseDeleted` terminates the other instances, and erases the
 * rest. Creates at the same time wait for the lock of the row, and are refused. Throws AppError `unauthenticated` when
 * there is no such organization, and `invalid` when `name` is given and is not its name.
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
      throw new AppError('organization_name_mismatch', texts.otherName, { param: 'name' })
    const due = await terminateSome(tx, id)
    await tx
      .update(organizations)
      .set({
        name: '',
        deletedAt: sql`now()`,
        updatedAt: sql`now()`,
        instanceCount: 0,
        // Without a known quantity, the next synchronization asks Stripe, and cancels the subscription.
        billedCount: null,
        billingAttempts: 0,
        nextBillingAt: sql`now()`,
      })
      .where(eq(organizations.id, id))
    await recordEvent(tx, { organizationId: id, type: 'organization.delete' })
    return { due, ...(await eraseSecrets(tx, id)) }
  }
  // It locks many instances. Other statements that lock many do so in another order: a deadlock is possible.
  return retryOnDeadlock(() => db.transaction(erase))
}

/** Terminates up to `maxTerminated` instances of an organization that are not. */
function terminateSome(tx: Db, organizationId: string): Promise<InstanceRef[]> {
  const some = tx
    .select({ id: instances.id })
    .from(instances)
    .where(and(eq(instances.organizationId, organizationId), isNotTerminated))
    .limit(maxTerminated)
  return tx
    .update(instances)
    .set({
      ...raiseGeneration('terminate'),
      changedBy: changedBy({ type: 'instance.delete', reason: 'The organization was deleted.' }),
    })
    .where(and(inArray(instances.id, some), isNotTerminated))
    .returning(instanceRefColumns)
}

/** Erases keys, secrets and stored answers. Requests in progress may still add some afterwards. */
async function eraseSecrets(tx: Db, id: string): Promise<Omit<Deletion, 'due'>> {
  const keys = await tx.delete(apiKeys).where(eq(apiKeys.organizationId, id)).returning({ hash: apiKeys.keyHash })
  const ownInstances = tx.select({ id: instances.id }).from(instances).where(eq(instances.organizationId, id))
  const erased = [
    await tx.delete(providerKeys).where(eq(providerKeys.organizationId, id)),
    await tx.delete(idempotencyKeys).where(eq(idempotencyKeys.organizationId, id)),
    await tx.delete(channels).where(inArray(channels.instanceId, ownInstances)),
    await tx.delete(skills).where(inArray(skills.instanceId, ownInstances)),
  ]
  const secrets = erased.reduce((sum, { rowCount }) => sum + (rowCount ?? 0), 0)
  return { keyHashes: keys.map(({ hash }) => hash), secrets }
}

/**
 * Terminates the other instances of deleted organizations, whose rows workers find without the queue. Erases the rest
 * of deleted organizations whose sandboxes are all destroyed, and logs one line for each as the proof. Their rows stay,
 * without secrets and names: a sandbox that is found later can still be attributed. A throw of the signal's reason, or
 * a crash, leaves what the next call does.
 */
export async function eraseDeleted(db: Db, log: Pick<Logger, 'info'>, signal?: AbortSignal): Promise<void> {
  const living = await db.select({ id: organizations.id }).from(organizations).where(hasLiving)
  for (const { id } of living) {
    while ((await retryOnDeadlock(() => terminateSome(db, id))).length > 0) signal?.throwIfAborted()
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
const hasLiving = sql`${isDeleted} AND EXISTS (
  SELECT FROM ${instances} WHERE ${instances.organizationId} = ${organizations.id} AND ${isNotTerminated})`
const isToErase = sql`${isDeleted} AND NOT EXISTS (
  SELECT FROM ${instances} WHERE ${instances.organizationId} = ${organizations.id}
  AND (${isDue} OR ${isNotTerminated}))`

/**
 * Skips an organization that another worker erases now. It logs the line before it commits: a crash in between makes
 * two lines, never none.
 */
async function eraseOrganization(
  db: Db,
  organizationId: string,
  log: Pick<Logger, 'info'>,
  signal?: AbortSignal,
): Promise<void> {
  // In separate transactions: one for all could take too long.
  await eraseInstancesOf(db, organizationId, signal)
  await deleteResponsesOfOrganization(db, organizationId, signal)
  await deleteCallsOf(db, organizationId, signal)
  await deleteBudgetsOf(db, organizationId)
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
    await redactEvents(tx, organizationId, { after }) // those of requests that were in progress
    const erased = await tx.$count(instances, eq(instances.organizationId, organizationId))
    log.info({ organizationId, instances: erased, deletedAt: organization.deletedAt }, 'organization erased')
    await tx.update(organizations).set({ erasedAt: sql`now()` }).where(eq(organizations.id, organizationId))
  })
}
